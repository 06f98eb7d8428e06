"""Models, image processor and inference for outlining lower-grade glioma in brain MRI."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

from .configuration_transunet import TransUNetConfig
from .configuration_unet import UNetConfig
from .image_processing_brain_mri import BrainMRIImageProcessor
from .modeling_transunet import TransUNetForSemanticSegmentation
from .modeling_unet import UNetForSemanticSegmentation

for config_class, model_class in (
    (UNetConfig, UNetForSemanticSegmentation),
    (TransUNetConfig, TransUNetForSemanticSegmentation),
):
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForSemanticSegmentation.register(config_class, model_class, exist_ok=True)
    AutoImageProcessor.register(config_class, image_processor_classes={"pil": BrainMRIImageProcessor}, exist_ok=True)

# Imported after the registration: the presets are built through the Auto classes.
from .presets import PRESETS, build_model, preset_config  # noqa: E402

__all__ = [
    "PRESETS",
    "BrainMRIImageProcessor",
    "TransUNetConfig",
    "TransUNetForSemanticSegmentation",
    "UNetConfig",
    "UNetForSemanticSegmentation",
    "build_model",
    "preset_config",
]
