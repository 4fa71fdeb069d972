from serveprune.artifacts.digest import sha256_json
from serveprune.config.deployment import DeploymentConfig

_REVISION = 1


def rollout_identity(deployment: DeploymentConfig, *, artifact: str) -> str:
    """Return what makes a rollout the same one after a restart or a change of the config, as 64 hexadecimal digits.

    Other shares, shadows or limits leave it as it is. Keys that have their default count as not written, so that a
    later version with more of them goes on with what runs.

    Args:
        deployment: It has a canary.
        artifact: Whatever tells the canary's artifact from others, such as its key.
    """
    assert deployment.canary is not None
    return sha256_json(
        {
            "revision": _REVISION,
            "canary": deployment.canary.model_dump(mode="json", exclude_defaults=True),
            "policy": deployment.policy,
            "stable": deployment.stable_tier,
            "artifact": artifact,
        }
    )
