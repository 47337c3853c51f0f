"""The anatomy of backdoors in LoRA adapters: measure, locate, cut, prove."""
