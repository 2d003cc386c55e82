"""Checkpoints: written aside with torch.distributed.checkpoint, renamed when whole, resumed exactly or refused."""
