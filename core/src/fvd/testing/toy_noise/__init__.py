"""The Gaussian mixture of `fvd.testing.toy` under a DDPM schedule, with networks that predict noise.

A method that runs on both takes no parametrisation for granted. Loaded only when asked for.
"""
