"""Contraction: named legs to equations, equations to plans that run without searching."""

from tntune.contract.equation import equation
from tntune.contract.plan import Plan, candidates, plan
from tntune.contract.route import train_routes
from tntune.contract.step import Step
from tntune.contract.timing import timed

__all__ = ["Plan", "Step", "candidates", "equation", "plan", "timed", "train_routes"]
