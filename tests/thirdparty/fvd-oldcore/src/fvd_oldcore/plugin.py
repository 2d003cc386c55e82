import fvd

fvd.register_sampler("oldcore", "fvd_oldcore.loop:sample")  # how plugins once worked; fvd must not get as far as this
