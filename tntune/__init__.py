"""Tensor networks for LoRA-style adapters."""
