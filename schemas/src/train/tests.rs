//! Tests of a run's settings and records.

use super::*;

#[test]
fn settings_of_older_versions_are_the_published_ones() {
    let mut json = serde_json::to_value(TrainConfig::default()).unwrap();
    let object = json.as_object_mut().unwrap();
    for (key, published) in [("side_network", "resnet18"), ("gate", "scalar")] {
        assert_eq!(object.shift_remove(key).unwrap(), published);
    }
    for key in ["train_mask_tokens", "train_hypernetworks"] {
        assert_eq!(object.shift_remove(key).unwrap(), false);
    }
    assert_eq!(serde_json::from_value::<TrainConfig>(json).unwrap(), TrainConfig::default());
}

/// Records of older versions lack them, and a run by default settings has the bytes that it always had.
#[test]
fn what_is_not_published_is_left_out_where_it_is_default_and_has_that_default_in_the_schema() {
    let json = json!(TrainConfig::default());
    let schema = json_schema::schema_of::<TrainConfig>();
    let named = schema["properties"].as_object().unwrap().keys();
    let left_out: Vec<&String> = named.filter(|name| json.get(name).is_none()).collect();
    assert_eq!(left_out.len(), 15, "{left_out:?}");
    let all: Map<String, Value> =
        left_out.iter().map(|name| ((*name).clone(), schema["properties"][*name]["default"].clone())).collect();
    assert_eq!(TrainConfig::with(&all).unwrap(), TrainConfig::default());
    assert_eq!(TrainConfig::value_in(&json, "ema"), json!(0.0));
    let given = TrainConfig { ema: 0.99, ..TrainConfig::default() };
    assert_eq!(TrainConfig::value_in(&json!(given), "ema"), json!(0.99));
}

#[test]
fn settings_that_contradict_one_another_are_refused() {
    let base = TrainConfig::default();
    let sequential = TrainConfig { sampling: Sampling::Organs, order: SliceOrder::Sequential, ..base.clone() };
    assert!(sequential.validate().unwrap_err().to_string().contains("sampling: organs draws slices at random"));
    let unvalidated = TrainConfig { early_stopping: 3, ..base.clone() };
    assert!(unvalidated.validate().unwrap_err().hint().unwrap().contains("--fold 1/5"));
    let skips = |arm, side_network| TrainConfig { decoder: DecoderKind::Skips, arm, side_network, ..base.clone() };
    let sam_only = skips(Arm::SamOnly, SideNetworkKind::Resnet18).validate().unwrap_err().to_string();
    assert!(sam_only.contains("decoder: skips come from the side network") && sam_only.contains("sam-only"), "{sam_only}");
    let vit = skips(Arm::Full, SideNetworkKind::VitTiny).validate().unwrap_err().to_string();
    assert!(vit.contains("vit-tiny has no stages"), "{vit}");
    for side_network in [SideNetworkKind::Resnet18, SideNetworkKind::Resnet34, SideNetworkKind::Resnet50] {
        skips(Arm::CnnOnly, side_network).validate().unwrap();
    }
    let around = |arm, neighbours| TrainConfig { neighbours, arm, ..base.clone() };
    let cnn_only = around(Arm::CnnOnly, 1).validate().unwrap_err().to_string();
    assert!(cnn_only.contains("neighbours: neighbours join SAM's embeddings"), "{cnn_only}");
    assert!(around(Arm::Full, 2).validate().unwrap_err().to_string().starts_with("neighbours"));
    around(Arm::SamOnly, 1).validate().unwrap();
    let gated = |arm| TrainConfig { ladder: LadderKind::Gated, arm, ..base.clone() };
    for arm in [Arm::CnnOnly, Arm::SamOnly] {
        assert!(gated(arm).validate().unwrap_err().to_string().starts_with("ladder: the ladder mixes SAM's rungs"));
    }
    gated(Arm::Full).validate().unwrap();
    for (wrong, name) in [
        (TrainConfig { ema: 1.0, ..base.clone() }, "ema"),
        (TrainConfig { train_fraction: 0.0, ..base.clone() }, "train_fraction"),
        (TrainConfig { tversky_beta: -1.0, ..base.clone() }, "tversky_beta"),
        (TrainConfig { loss: LossKind::Tversky, tversky_alpha: 0.0, tversky_beta: 0.0, ..base.clone() }, "tversky_alpha"),
    ] {
        assert!(wrong.validate().unwrap_err().to_string().starts_with(name));
    }
    base.validate().unwrap();
}

#[test]
fn settings_without_effect_are_known() {
    let base = TrainConfig { focal_gamma: 1.0, tversky_beta: 0.5, ..TrainConfig::default() };
    assert_eq!(base.unused(), [["focal_gamma", "loss = focal"], ["tversky_beta", "loss = tversky"]]);
    let focal = TrainConfig { loss: LossKind::Focal, ..base.clone() };
    assert_eq!(focal.unused(), [["tversky_beta", "loss = tversky"]]);
    assert!(TrainConfig::default().unused().is_empty());
    assert!(TrainConfig { loss: LossKind::Tversky, focal_gamma: 2.0, ..base }.unused().is_empty());
}

#[cfg(feature = "cli")]
#[test]
fn words_are_typed_as_they_are_stored() {
    fn same<T: clap::ValueEnum + Serialize>() {
        for word in T::value_variants() {
            assert_eq!(json!(word), word.to_possible_value().unwrap().get_name());
        }
    }
    same::<OptimizerKind>();
    same::<SliceOrder>();
    same::<Arm>();
    same::<SideNetworkKind>();
    same::<GateKind>();
    same::<Precision>();
    same::<Sampling>();
    same::<LrSchedule>();
    same::<LossKind>();
    same::<DecoderKind>();
    same::<LadderKind>();
    same::<AugmentPolicy>();
    same::<crate::encoder::EncoderArch>();
    same::<crate::precompute::StoreDtype>();
    same::<crate::precompute::Compression>();
    same::<crate::precompute::PixelNormalisation>();
    same::<crate::eval::ScoredSplit>();
    same::<crate::eval::Protocol>();
    same::<crate::eval::EmptyRule>();
    same::<crate::eval::Hd95Definition>();
    same::<crate::eval::Palette>();
    same::<crate::eval::Resample>();
}

#[test]
fn networks_and_gates_are_stored_as_they_are_typed() {
    for network in [SideNetworkKind::Resnet18, SideNetworkKind::Resnet34, SideNetworkKind::Resnet50, SideNetworkKind::VitTiny] {
        assert_eq!(serde_json::to_value(network).unwrap(), network.name());
    }
    for gate in [GateKind::Scalar, GateKind::Channel, GateKind::Pixel] {
        assert_eq!(serde_json::to_value(gate).unwrap(), gate.name());
    }
    for decoder in [DecoderKind::Plain, DecoderKind::Skips, DecoderKind::SkipsHalf] {
        assert_eq!(serde_json::to_value(decoder).unwrap(), decoder.name());
    }
    for ladder in [LadderKind::None, LadderKind::Gated] {
        assert_eq!(serde_json::to_value(ladder).unwrap(), ladder.name());
    }
}
