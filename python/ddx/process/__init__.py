"""Forward processes: flow, VP and EDM behind one contract, and the conversions between kinds of prediction."""

from ddx.process.base import Process
from ddx.process.conversion import PredictionKind
from ddx.process.edm import EDMProcess
from ddx.process.flow import FlowProcess
from ddx.process.vp import VPProcess

__all__ = ["EDMProcess", "FlowProcess", "PredictionKind", "Process", "VPProcess"]
