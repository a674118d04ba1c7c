"""What a forward takes of its device beyond the tensors that Python sees: the allocator's own figure."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class DevicePeak:
    """Compares the allocator's peak before and after a forward.

    The peak statistics are the caller's and are not reset, so a forward that stays below an earlier
    peak cannot be measured: then the ledger of tensors stands alone.
    """

    device: torch.device | None
    allocated: int = 0
    peak: int = 0

    @classmethod
    def begin(cls, tensors: list[torch.Tensor]) -> DevicePeak:
        """Starts to watch the CUDA device that these inputs lie on; nothing without one."""
        device = next((t.device for t in tensors if t.device.type == "cuda"), None)
        if device is None:
            return cls(None)
        torch.cuda.synchronize(device)
        return cls(
            device, torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        )

    def end(self) -> int | None:
        """Bytes that the forward took at its peak, workspaces of kernels included; None: not known."""
        if self.device is None:
            return None
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device)
        return peak - self.allocated if peak > self.peak else None
