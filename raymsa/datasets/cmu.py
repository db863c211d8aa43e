"""placeholder"""
from typing import Literal
from raymsa.datasets.base import Layout
class Cmu(Layout):
    kind: Literal["cmu"] = "cmu"
class T(Layout):
    kind: Literal["table"] = "table"
