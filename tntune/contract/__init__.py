"""Contraction: named legs to equations, equations to plans that run without searching."""

from tntune.contract.equation import equation
from tntune.contract.plan import Plan, Step, plan

__all__ = ["Plan", "Step", "equation", "plan"]
