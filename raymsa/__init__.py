"""raymsa: multimodal sentiment experiments with an omni-modal LLM, as job files."""

__version__ = "0.1.0"
