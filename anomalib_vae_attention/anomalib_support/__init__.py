"""What works around anomalib and Lightning, or replaces a part of them."""

INTERNALS = {
    "anomalib.data.AnomalibDataModule._setup": "data: where a datamodule makes its data sets",
    "anomalib.engine.engine.create_versioned_dir": "plugin: makes the folder of a run and the link to it",
    "anomalib.cli.cli.configure_logger": "plugin: where the command makes its handlers of logs",
    "anomalib.data.datasets.image.tabular.make_tabular_dataset": "plugin: columns of paths",
    "anomalib.data.utils.path.contains_non_printable_characters": "plugin: letters outside ASCII",
    "anomalib.models.ALLOWED_MODULES": "plugin: modules that get_model() takes a class from",
    "anomalib.models._get_model_class_by_name": "plugin: looks a model up by its name",
    "anomalib.models.components.AnomalibModule._post_training_quantization_ov": "exports: the backbone only",
    "anomalib.models.image.patchcore.torch_model.KCenterGreedy": "benchmark/coreset: replaced by a faster one",
    "anomalib.post_processing.PostProcessor._checkpoint_config_keys": "thresholds: what a checkpoint keeps of it",
    "anomalib.post_processing.PostProcessor._image_threshold": "thresholds: where thresholds are kept",
    "anomalib.post_processing.PostProcessor._pixel_threshold": "thresholds: where thresholds are kept",
    "jsonargparse._typehints.get_all_subclass_paths": "plugin: lists the classes that the command line knows",
    "jsonargparse._typehints.raise_union_unexpected_value": "plugin: hides our errors in a long text",
    "jsonargparse._typehints.resolve_class_path_by_name": "plugin: turns a name on the command line into a class",
    "lightning.pytorch.LightningModule._trainer": "lightning_model: the trainer, or none; without it is an error",
    "lightning.pytorch.Trainer._default_root_dir": "distributed, latest_link: the folder of results, no setter",
    "torch.nn.Module._apply": "backbone: weights take the memory layout that suits their device",
    "torch.nn.Module._buffers": "reference, image_vae: buffers take the shapes of a checkpoint",
    "torch.nn.Module._load_from_state_dict": "reference, image_vae: buffers take the shapes of a checkpoint",
    "torch.nn.Module._save_to_state_dict": "distributed, image_vae: what a checkpoint keeps of a module",
    "torch.nn.parallel.DistributedDataParallel._ddp_params_and_buffers_to_ignore": "fit: buffers that are not shared",
    "torch.utils._pytree.tree_leaves": "batch_norm_folding: the tensors among a call's arguments",
}
"""All that this package relies on and that is no public interface of its library, with where and why."""
