"""Quantum dots: charge-stability diagrams, generated or published, and the task to tell one dot from two."""

from tntune.experiments.quantum_dots.noise import LEVELS, Noise
from tntune.experiments.quantum_dots.pictures import draw_diagrams
from tntune.experiments.quantum_dots.published import load_published
from tntune.experiments.quantum_dots.sample import Device, diagrams, double_dot, single_dot
from tntune.experiments.quantum_dots.simulate import Dots, Sensor, Window, ground_state, mean_charge
from tntune.experiments.quantum_dots.task import DotTask, quantum_dot_task

__all__ = [
    "LEVELS",
    "Device",
    "DotTask",
    "Dots",
    "Noise",
    "Sensor",
    "Window",
    "diagrams",
    "double_dot",
    "draw_diagrams",
    "ground_state",
    "load_published",
    "mean_charge",
    "quantum_dot_task",
    "single_dot",
]
