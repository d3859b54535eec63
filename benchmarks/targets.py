"""What this project set out to reach on two CPU cores, and on an H100 or H200."""

# Name of a row: the relation and the limit that its median should satisfy.
TARGETS = {
    "attention_vs_jax_unfold": (">=", 8.0),
    "attention_vs_torch_unfold": (">=", 12.0),
    "attention_vs_conv": (">=", 1.0),
    "attention_stage1_memory_vs_jax_unfold": ("<=", 1 / 6),
    "joint_step_vs_torch": (">=", 8.0),
    "attention_step_over_conv_step": ("<=", 2.0),
    "pipeline_images_per_second": (">=", 20_000.0),
    "rewire_share_of_epoch": ("<=", 0.02),
    "compile_cold_seconds": ("<=", 45.0),
    "compile_warm_seconds": ("<=", 5.0),
    "attention_growth_double_side": ("<=", 4.4),
    "attention_growth_kernel_11_over_7": ("<=", 3.0),
    "eight_devices_over_one": ("<=", 1.3),
    "heads_0.5_batch_1_share": (">=", 0.75),
    "heads_0.5_batch_64_share": (">=", 0.75),
    "heads_0.3_batch_1_vs_teacher": (">=", 2.0),
    "heads_0.3_batch_64_vs_teacher": (">=", 2.0),
    **{
        f"onnx_{size}_batch_{batch}_{row}": target
        for size in ("16x16", "32x32")
        for batch in (1, 64)
        for row, target in (
            ("student_vs_teacher", (">=", 1.0)),
            ("structured_vs_teacher", (">=", 2.0)),
            ("structured_over_promise", ("<=", 1.25)),
        )
    },
    "stream_64_by_1_per_core_vs_torchvision": (">=", 1.0),
    "stream_64_by_2_per_core_vs_torchvision": (">=", 1.0),
    "stream_128_by_1_per_core_vs_torchvision": (">=", 1.0),
    "stream_128_by_2_per_core_vs_torchvision": (">=", 1.0),
    "feed_224_vs_step": (">=", 1.0),
    "stream_224_memory": ("<=", 1536.0),
    "weights_largest": ("<=", 1e-4),
    "pruner_resnet26_wrapper_overhead": ("<=", 1.0),
    "pruner_mlp_wrapper_overhead": ("<=", 1.0),
    "pruner_resnet26_wrapper_off": ("<=", 0.0),
    "pruner_mlp_wrapper_off": ("<=", 0.0),
    "gpu_attention_32_over_convolution": ("<=", 2.0),
    "gpu_attention_16_over_convolution": ("<=", 2.0),
    "gpu_attention_8_over_convolution": ("<=", 1.0),
    "gpu_attention_4_over_convolution": ("<=", 1.0),
    "gpu_attention_32_vs_torch": (">=", 20.0),
    "gpu_attention_step_over_conv_step": ("<=", 1.3),
    "gpu_teacher_vs_torch": (">=", 1.0),
    "gpu_joint_vs_torch": (">=", 12.0),
    "gpu_teacher_compile": ("<=", 30.0),
    "gpu_attention_compile": ("<=", 40.0),
}
