"""Ray's pretence of a cloud, with a folder of its own for each machine, as real ones have.

In one folder a machine that comes unpacks the submitted job anew, under those that run it.
"""

import itertools
from functools import partial
from typing import Any
from unittest import mock

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class MachinesApart(FakeMultiNodeProvider):
    """Takes the folder that theirs stand in from the provider's config, as `folder`."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self.numbers = itertools.count(1)

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        folder = f"{self.provider_config['folder']}/{next(self.numbers)}"
        # Machines that are asked for together come from several threads.
        with self.lock:
            apart = partial(parameter.RayParams, temp_dir=folder)
            with mock.patch.object(parameter, "RayParams", apart):
                super()._create_node_with_resources_and_labels(*arguments)
