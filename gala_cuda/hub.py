"""Networks of this package on the Hugging Face Hub, or in a folder as the Hub has them: weights, config, model card."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin
from torch import nn

from .models.resnet import ResNet
from .networks.errors import NetworkError, WeightsError
from .networks.hub_files import WEIGHTS, download
from .networks.loading import read_weights, rebuild
from .networks.network import Network
from .training.checkpoint import as_bytes
from .training.epoch import Epoch, best_epoch
from .training.trained_network import weights_in

_CARD = """---
{{ card_data }}
---
# {{ title }}

{{ network }}, whose attention is that of [Learning what and where to attend]({{ paper_url }}) (GALA) where it has any.

```python
from gala_cuda.hub import GalaResNet

model = GalaResNet.from_pretrained("NAME").eval()
logits = model(images)  # [N, {{ channels }}, {{ size }}, {{ size }}] to [N, {{ classes | length }}]
```

Or `gala-cuda predict hf-hub:NAME pictures`. Pictures are prepared so: {{ preprocessing }}.

Classes: {{ classes | join(", ") }}.
{% if epoch %}
{% if epoch.test_map is none %}| epoch | top-1 error | top-5 error | loss | images |
|---|---|---|---|---|
| {{ epoch.epoch }} | {{ "%.2f" | format(100 * (1 - epoch.test_accuracy)) }} % | {{
    "%.2f" | format(100 * (1 - epoch.test_top5)) }} % | {{ "%.4f" | format(epoch.test_loss) }} | held out in training |
{% else %}| epoch | mAP | loss | images |
|---|---|---|---|
| {{ epoch.epoch }} | {{ "%.2f" | format(100 * epoch.test_map) }} % | {{
    "%.4f" | format(epoch.test_loss) }} | held out in training |
{% endif %}{% endif %}"""


class GalaResNet(
    ResNet,
    ModelHubMixin,
    library_name="gala-cuda",
    pipeline_tag="image-classification",
    paper_url="https://arxiv.org/abs/1805.08819",
    model_card_template=_CARD,
):
    """A network of this package with the Hub's `from_pretrained`, `save_pretrained` and `push_to_hub`.

        model = GalaResNet.from_pretrained("runs/pets")  # the folder of a training, or of save_pretrained
        model.push_to_hub("me/pets")
        model = GalaResNet.from_pretrained("me/pets")

    It is made by `from_pretrained` or `of`. Networks of timm, with GALA or without, have timm's own way to the Hub.

    Attributes:
        network: how the network is built, its classes, and how pictures are prepared for it.
        epoch: the best epoch of its training; None where that is not known.
    """

    network: Network
    epoch: Epoch | None

    @classmethod
    def of(cls, model: nn.Module, network: Network, epoch: Epoch | None = None) -> "GalaResNet":
        """`model`, which `network` describes, itself: it becomes one of these.

        Raises:
            NetworkError: it is none of this package's networks.
        """
        if not isinstance(model, ResNet):
            raise NetworkError("model", f"is {network.model}, a {type(model).__name__}; expected one of this package's")
        model.__class__ = cls
        assert isinstance(model, cls)
        model.network, model.epoch = network, epoch
        model._hub_mixin_config = {"network": asdict(network), "epoch": epoch and asdict(epoch)}
        return model

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # the config is asked for by its name
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | None = None,
    ) -> "GalaResNet":
        place = Path(model_id)
        if place.is_dir():
            path = place / WEIGHTS if (place / WEIGHTS).is_file() else weights_in(place)
        else:
            path = download(model_id, revision=revision, cache_dir=cache_dir, force_download=force_download,
                            local_files_only=local_files_only, token=token)  # fmt: skip
        weights, network = read_weights(path)
        if network is None:
            raise WeightsError(f"{path} does not name its network; expected weights of gala-cuda train")
        known = (config or {}).get("epoch")
        return cls.of(rebuild(network, weights), network, Epoch(**known) if known else _trained(place))

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {name: tensor.cpu() for name, tensor in self.state_dict().items()}
        (save_directory / WEIGHTS).write_bytes(as_bytes(weights, self.network.metadata()))

    def generate_model_card(self, **more: Any) -> ModelCard:
        """The card: what the network is, how it is used, its classes, and the figures of its training."""
        network = self.network
        facts = {
            "title": more.pop("title", network.model), "network": network.model, "classes": network.class_names,
            "channels": network.channels, "size": network.size, "epoch": self.epoch,
            "preprocessing": network.preprocessing.describe(network.size),
        }  # fmt: skip
        return super().generate_model_card(**facts, **more)


def _trained(folder: Path) -> Epoch | None:
    """The best epoch of the training in `folder`; None where there is none."""
    log = folder / "log.jsonl"
    if not log.is_file():
        return None
    return best_epoch([Epoch(**json.loads(line)) for line in log.read_text().splitlines()])
