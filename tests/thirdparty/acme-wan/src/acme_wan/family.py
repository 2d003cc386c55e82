from fvd_wan.family import WanFamily


class AcmeWanFamily(WanFamily):
    """Wan's models and data, with `AcmeWanConfig`."""
