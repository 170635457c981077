"""The device plan: what each role takes (memory.py), where it goes (layout.py), what else to try.

Made from config.json's figures before anything is loaded; no torch, no vLLM.
"""

from rnow.plan.figures import ModelFigures, load_figures, read_figures
from rnow.plan.make import device_variables, make_plan
from rnow.plan.records import EngineKind, Plan, Role, RolePlan, ServerPlan, Workload

__all__ = [
    "EngineKind",
    "ModelFigures",
    "Plan",
    "Role",
    "RolePlan",
    "ServerPlan",
    "Workload",
    "device_variables",
    "load_figures",
    "make_plan",
    "read_figures",
]
