"""The Thinker of Qwen2.5-Omni: loading it, and turning clips into what it reads."""
