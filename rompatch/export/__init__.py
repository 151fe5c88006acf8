"""Puts a stack into forms that other programs load: adapters of PEFT and llama.cpp, GGUF models, plain factors."""
