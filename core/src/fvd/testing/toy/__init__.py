"""A whole family whose data distribution is known exactly: what methods are tested against. Loaded only when asked for.

Its "videos" are points of a Gaussian mixture, latents [B, 2, 1, 1, 1]; captions name modes of the mixture. The teacher
``path: analytic`` is the exact denoiser, ``path: random`` a network of a few thousand weights. So a method is run to its
end in seconds on a CPU, and what it makes is measured against the truth (`fvd.testing.toy.mixture.energy_distance`).

`fvd.testing.toy` is flow matching and predicts the velocity; `fvd.testing.toy_noise` is the same mixture under a DDPM
schedule and predicts noise: a method that runs on both takes no parametrisation for granted. The method ``toy`` is their
counterpart, for testing a family without any other distribution.

    plugin      descriptors: family, method and dataset kind, all called ``toy``
    mixture     the distribution: samples, density, exact posterior means, and the distance between two sets of samples
    workbench   a method on the toy in one call, without a run file
"""
