"""Depth, confidence and motion of frames: the protocol, the embedded network and the oracle."""

from spatia_model.perception.compact import CompactPerception, CompactPerceptionConfig
from spatia_model.perception.oracle import OraclePerceiver
from spatia_model.perception.protocols import Perceiver

__all__ = ["CompactPerception", "CompactPerceptionConfig", "OraclePerceiver", "Perceiver"]
