"""LoRA adapters: read through the safety gate, held as factors, their exact algebra."""
