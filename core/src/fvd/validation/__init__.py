"""Sampling during training: what a method asks for (`request`), and the validator that core ships (`video`)."""
