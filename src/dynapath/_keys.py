"""Every slot name, spelled once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DynamicKeys:
    """Slots of a fit of group dynamics, all derived from `key_added`."""

    key: str = "dynvae"

    @property
    def latent(self) -> str:
        """`obsm`: state of each cell."""
        return f"X_{self.key}"

    @property
    def std(self) -> str:
        """`obsm`: its posterior standard deviation."""
        return f"{self.key}_std"

    @property
    def velocity(self) -> str:
        """`obsm`: dz/dt of each cell."""
        return f"{self.key}_velocity"

    @property
    def groups(self) -> str:
        """`obsm`: responsibilities."""
        return f"{self.key}_groups"

    @property
    def group(self) -> str:
        """`obs`: most probable group."""
        return f"{self.key}_group"

    @property
    def prob(self) -> str:
        """`obs`: its probability."""
        return f"{self.key}_prob"

    @property
    def undetermined(self) -> str:
        """`obs`: whether no group is probable enough."""
        return f"{self.key}_undetermined"

    def embedded_velocity(self, basis: str) -> str:
        """`obsm`: the velocity as arrows in an embedding, under the name by which scvelo looks for it."""
        return f"{self.velocity}_{basis}"

    @property
    def obsm(self) -> tuple[str, ...]:
        """All slots in `obsm`."""
        return self.latent, self.std, self.velocity, self.groups

    @property
    def obs(self) -> tuple[str, ...]:
        """All columns of `obs`."""
        return self.group, self.prob, self.undetermined


def embedding_key(basis: str) -> str:
    """`obsm`: an embedding, as scanpy spells it."""
    return f"X_{basis}"


def colors_key(column: str) -> str:
    """`uns`: colours of the categories of an `obs` column, as scanpy spells it."""
    return f"{column}_colors"
