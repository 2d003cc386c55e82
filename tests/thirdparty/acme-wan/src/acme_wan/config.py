from fvd_wan.config import WanConfig


class AcmeWanConfig(WanConfig):
    negative_prompt: str = "blurry, low quality, still image"
    """Text of the unconditional branch."""
