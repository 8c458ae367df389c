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

    def stage(self, name: str) -> str:
        """`obsm`: state of each cell at an earlier stage of the training."""
        return f"{self.key}_stage_{name}"

    @property
    def stages(self) -> tuple[str, ...]:
        """Slots in `obsm` of all earlier stages, written on request."""
        return tuple(self.stage(name) for name in ("untrained", "static"))

    @property
    def obsm(self) -> tuple[str, ...]:
        """All slots in `obsm` that every fit has."""
        return self.latent, self.std, self.velocity, self.groups

    @property
    def obs(self) -> tuple[str, ...]:
        """All columns of `obs`."""
        return self.group, self.prob, self.undetermined


def embedding_key(basis: str) -> str:
    """`obsm`: an embedding, as scanpy spells it."""
    return f"X_{basis}"


@dataclass(frozen=True)
class IncrementKeys:
    """Slots of a fit of the increment model, all derived from `key_added`."""

    key: str = "increment"

    @property
    def params(self) -> str:
        """`obsm`: coefficients of each unit."""
        return f"{self.key}_params"

    @property
    def se(self) -> str:
        """`obsm`: their standard errors."""
        return f"{self.key}_se"

    @property
    def status(self) -> str:
        """`obs`: how the fit of the unit ended."""
        return f"{self.key}_status"

    @property
    def loss(self) -> str:
        """`obs`: mean loss of an innovation."""
        return f"{self.key}_loss"

    @property
    def n(self) -> str:
        """`obs`: number of innovations."""
        return f"{self.key}_n"

    @property
    def state(self) -> str:
        """`layers`: filtered state."""
        return f"{self.key}_state"

    @property
    def resid(self) -> str:
        """`layers`: innovations."""
        return f"{self.key}_resid"

    @property
    def observed(self) -> str:
        """`layers`: where a report was received, if that was given as an array."""
        return f"{self.key}_observed"

    @property
    def imputed(self) -> str:
        """`layers`: reports, and what was imputed for those missing."""
        return f"{self.key}_imputed"

    @property
    def imputed_lower(self) -> str:
        """`layers`: lower end of its interval."""
        return f"{self.key}_imputed_lower"

    @property
    def imputed_upper(self) -> str:
        """`layers`: upper end of its interval."""
        return f"{self.key}_imputed_upper"

    @property
    def obsm(self) -> tuple[str, ...]:
        """All slots in `obsm`."""
        return self.params, self.se

    @property
    def obs(self) -> tuple[str, ...]:
        """All columns of `obs`."""
        return self.status, self.loss, self.n

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers."""
        return self.state, self.resid, self.observed, self.imputed, self.imputed_lower, self.imputed_upper


@dataclass(frozen=True)
class VAEKeys:
    """Slots of a count VAE, all derived from `key_added`."""

    key: str = "vae"

    @property
    def latent(self) -> str:
        """`obsm`: state of each cell."""
        return f"X_{self.key}"

    @property
    def std(self) -> str:
        """`obsm`: its posterior standard deviation."""
        return f"{self.key}_std"

    @property
    def loadings(self) -> str:
        """`varm`: loadings of genes, of a linear decoder."""
        return f"{self.key}_loadings"

    @property
    def obsm(self) -> tuple[str, ...]:
        """All slots in `obsm`."""
        return self.latent, self.std

    @property
    def obs(self) -> tuple[str, ...]:
        """No columns."""
        return ()

    @property
    def varm(self) -> tuple[str, ...]:
        """All slots in `varm`."""
        return (self.loadings,)


@dataclass(frozen=True)
class EstimateKeys:
    """Slots of the parameters of a program, all derived from `key_added`."""

    key: str = "estimate"

    @property
    def params(self) -> str:
        """`obsm`: parameters of each unit."""
        return f"{self.key}_params"

    @property
    def se(self) -> str:
        """`obsm`: their standard errors."""
        return f"{self.key}_se"

    @property
    def status(self) -> str:
        """`obs`: how the search of the unit ended."""
        return f"{self.key}_status"

    @property
    def loss(self) -> str:
        """`obs`: sum of squared residuals, or negative log-likelihood."""
        return f"{self.key}_loss"

    @property
    def n(self) -> str:
        """`obs`: number of residuals or rows."""
        return f"{self.key}_n"

    @property
    def obsm(self) -> tuple[str, ...]:
        """All slots in `obsm`."""
        return self.params, self.se

    @property
    def obs(self) -> tuple[str, ...]:
        """All columns of `obs`."""
        return self.status, self.loss, self.n


@dataclass(frozen=True)
class LatentDynamicsKeys:
    """Slots of a fit of latent dynamics of visits, all derived from `key_added`."""

    key: str = "latent_dynamics"

    @property
    def latent(self) -> str:
        """`obsm`: state at each visit."""
        return f"X_{self.key}"

    @property
    def encoded(self) -> str:
        """`obsm`: what the visit says by itself."""
        return f"{self.key}_encoded"

    @property
    def std(self) -> str:
        """`obsm`: standard deviation of the state."""
        return f"{self.key}_std"

    @property
    def theta(self) -> str:
        """`obsm`: parameters of the subject's dynamics."""
        return f"{self.key}_theta"

    @property
    def fitted(self) -> str:
        """`layers`: decoded states."""
        return f"{self.key}_fitted"

    @property
    def obsm(self) -> tuple[str, ...]:
        """All slots in `obsm`."""
        return self.latent, self.encoded, self.std, self.theta

    @property
    def obs(self) -> tuple[str, ...]:
        """No columns."""
        return ()

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers."""
        return (self.fitted,)


def colors_key(column: str) -> str:
    """`uns`: colours of the categories of an `obs` column, as scanpy spells it."""
    return f"{column}_colors"
