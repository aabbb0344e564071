//! Tests of the configuration of stage one.

use super::*;
use crate::preprocessing::{Channel, IGNORED_CLASS, Intensity, one_ct_channel};

fn published() -> PrecomputeConfig {
    PrecomputeConfig::published(EncoderArch::VitB, EncoderWeights::Random { seed: 0 })
}

#[test]
fn one_ct_channel_and_no_named_test_cases_leave_no_trace() {
    let json = serde_json::to_value(published()).unwrap();
    assert_eq!(json["preprocessing"].as_object().unwrap().keys().collect::<Vec<_>>(), ["window_hu", "label_map"]);
    assert!(json.get("test_cases").is_none() && json.get("unlabelled").is_none());
    assert_eq!(serde_json::from_value::<PrecomputeConfig>(json).unwrap(), published());
}

#[test]
fn another_encoder_has_channels_of_its_own_and_sams_decoder() {
    let json = serde_json::to_value(published()).unwrap();
    assert!(json.get("decoder_weights").is_none());
    assert_eq!((published().embed_channels(), published().embeddings_len()), (256, 256 * 32 * 32));
    let file = |sha256: &str| EncoderWeights::Checkpoint { sha256: sha256.into() };
    let dino = PrecomputeConfig::published(EncoderArch::Dinov2Vits14, file("d"));
    let error = dino.validate().unwrap_err();
    assert!(error.to_string().contains("decoder_weights: a checkpoint of dinov2_vits14 has no mask decoder"), "{error}");
    let both = PrecomputeConfig { decoder_weights: Some(file("s")), ..dino };
    assert!(both.validate().is_ok());
    assert_eq!((both.embed_channels(), both.grid_size()), (384, 32));
    let json = serde_json::to_value(&both).unwrap();
    assert_eq!((&json["encoder"], &json["decoder_weights"]["sha256"]), (&"dinov2_vits14".into(), &"s".into()));
    assert_eq!(serde_json::from_value::<PrecomputeConfig>(json).unwrap(), both);
    assert!(PrecomputeConfig { encoder: EncoderArch::VitB, ..both }.validate().is_err());
    let random = PrecomputeConfig::published(EncoderArch::Dinov3Vitl16, EncoderWeights::Random { seed: 0 });
    assert!(random.validate().is_ok());
    assert!(PrecomputeConfig { rungs: vec![23], rung_channels: 1024, ..random.clone() }.validate().is_ok());
    assert!(PrecomputeConfig { rungs: vec![24], ..random }.validate().is_err());
}

#[test]
fn a_normalisation_of_pixels_leaves_no_trace_where_there_is_none() {
    let json = serde_json::to_value(published()).unwrap();
    assert!(json.get("pixel_normalisation").is_none());
    let with = PrecomputeConfig { pixel_normalisation: PixelNormalisation::Sam, ..published() };
    let json = serde_json::to_value(&with).unwrap();
    assert_eq!(json["pixel_normalisation"], "sam");
    assert_eq!(serde_json::from_value::<PrecomputeConfig>(json).unwrap(), with);
    // SAM's numbers, of 0 to 255.
    let [mean, deviation] = PixelNormalisation::Sam.mean_and_deviation().unwrap();
    for (found, expected) in mean.iter().zip([123.675, 116.28, 103.53]).chain(deviation.iter().zip([58.395, 57.12, 57.375])) {
        assert!((found * 255.0 - expected).abs() < 1e-4, "{found}");
    }
}

#[test]
fn the_ignored_class_is_in_the_label_map_and_no_organs() {
    let mut config = published();
    assert_eq!(config.ignored_class(), None);
    config.preprocessing.label_map = vec![0, 1, IGNORED_CLASS];
    assert_eq!(config.ignored_class(), Some(IGNORED_CLASS));
    config.class_names = (0..254).map(|organ| format!("organ {organ}")).collect();
    assert_eq!(config.ignored_class(), None, "254 is the last organ's");
}

#[test]
fn an_orientation_and_a_spacing_come_back_from_json() {
    let mut config = published();
    config.preprocessing.orientation = Some("LPS".parse().unwrap());
    config.preprocessing.spacing_mm = Some([3.0, 0.8, 0.8]);
    assert!(config.validate().is_ok());
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(json["preprocessing"]["orientation"], "LPS");
    assert_eq!(serde_json::from_value::<PrecomputeConfig>(json).unwrap(), config);
    config.preprocessing.spacing_mm = Some([3.0, 0.0, 0.8]);
    assert!(config.validate().unwrap_err().to_string().contains("preprocessing.spacing_mm"));
}

#[test]
fn other_channels_come_back_from_json() {
    let mut config = published();
    let intensity = Intensity::Percentiles { low: 0.5, high: 99.5 };
    config.preprocessing.channels.push(Channel { index: 2, name: "PET".into(), intensity });
    config.test_cases = vec!["a".into()];
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(json["preprocessing"]["channels"][1]["intensity"]["kind"], "percentiles");
    assert_eq!(serde_json::from_value::<PrecomputeConfig>(json).unwrap(), config);
    assert_eq!((config.num_channels(), config.image_len()), (2, 2 * 512 * 512));
}

#[test]
fn rungs_leave_no_trace_where_there_are_none() {
    let json = serde_json::to_value(published()).unwrap();
    assert!(json.as_object().unwrap().keys().all(|key| !key.contains("rung")), "{json}");
    assert_eq!((published().rungs_len(), published().has_rung_projection()), (0, false));
    let with = PrecomputeConfig { rungs: vec![2, 5, 8, 11], ..published() };
    assert!(with.validate().is_ok());
    let json = serde_json::to_value(&with).unwrap();
    assert_eq!(json["rungs"], serde_json::json!([2, 5, 8, 11]));
    assert!(json.get("rung_channels").is_none());
    assert_eq!(serde_json::from_value::<PrecomputeConfig>(json).unwrap(), with);
    assert_eq!((with.rungs_len(), with.samples_rungs()), (4 * 64 * 32 * 32, true));
    assert_eq!(with.clone().without_rungs(), published());
    let none = PrecomputeConfig { rung_projection: RungProjection::None, ..with.clone() };
    assert_eq!((none.rungs_len(), none.has_rung_projection()), (4 * 768 * 32 * 32, false));
    let random = PrecomputeConfig { rung_projection: RungProjection::Random, rung_channels: 8, rung_seed: 3, ..with };
    let json = serde_json::to_value(&random).unwrap();
    assert_eq!((&json["rung_channels"], &json["rung_projection"], &json["rung_seed"]), (&8.into(), &"random".into(), &3.into()));
    assert_eq!(serde_json::from_value::<PrecomputeConfig>(json).unwrap(), random);
}

#[test]
fn channels_that_are_made_of_one_leave_no_trace_where_there_are_none() {
    let json = serde_json::to_value(published()).unwrap();
    assert!(json["preprocessing"].get("channels_from").is_none());
    let with = |channels_from| {
        let mut config = published();
        config.preprocessing.channels_from = channels_from;
        config
    };
    let windows = ChannelsFrom::Windows { hu: ChannelsFrom::DEFAULT_WINDOWS };
    for (channels_from, kind) in [(ChannelsFrom::Neighbours, "neighbours"), (windows, "windows")] {
        let config = with(channels_from);
        assert!(config.validate().is_ok());
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(json["preprocessing"]["channels_from"]["kind"], kind);
        assert_eq!(serde_json::from_value::<PrecomputeConfig>(json).unwrap(), config);
        assert_eq!((config.num_channels(), config.image_len()), (3, 3 * 512 * 512));
        let mut two = config.clone();
        two.preprocessing.channels.push(Channel { index: 1, name: "PET".into(), intensity: Intensity::Window });
        let error = two.validate().unwrap_err();
        assert!(error.to_string().contains("these scans have 2: CT, PET"), "{error}");
        assert!(error.hint().unwrap().contains("--channels"));
    }
    let mut mr = with(windows);
    mr.preprocessing.channels[0] =
        Channel { index: 0, name: "MR".into(), intensity: Intensity::Percentiles { low: 0.5, high: 99.5 } };
    assert!(mr.validate().unwrap_err().to_string().contains("\"MR\" is scaled between percentiles"));
    mr.preprocessing.channels_from = ChannelsFrom::Neighbours;
    assert!(mr.validate().is_ok(), "slices have neighbours in any unit");
    for window in [[5.0, 5.0], [f32::NAN, 1.0], [0.0, f32::INFINITY]] {
        assert!(with(ChannelsFrom::Windows { hu: [[0.0, 1.0], window, [0.0, 1.0]] }).validate().is_err(), "{window:?}");
    }
}

#[test]
fn reflections_of_test_slices_leave_no_trace_where_there_are_none() {
    let json = serde_json::to_value(published()).unwrap();
    assert!(json.get("test_augment").is_none());
    let with = PrecomputeConfig { test_augment: AugmentPolicy::Flips, ..published() };
    let json = serde_json::to_value(&with).unwrap();
    assert_eq!(json["test_augment"], "flips");
    assert_eq!(serde_json::from_value::<PrecomputeConfig>(json).unwrap(), with);
    assert!(with.validate().is_ok());
    let untrained = PrecomputeConfig { augment: AugmentPolicy::None, ..with.clone() };
    assert!(untrained.validate().unwrap_err().to_string().contains("flips need augment"));
    let rotated = PrecomputeConfig { test_augment: AugmentPolicy::Reference, ..with };
    assert!(rotated.validate().unwrap_err().to_string().contains("found \"reference\""));
}

#[test]
fn indistinguishable_classes_and_channels_are_refused() {
    let refused = |change: fn(&mut PrecomputeConfig)| {
        let mut config = published();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    assert!(refused(|c| c.class_names[1] = "left_kidney".into()).contains("voxels_left_kidney"));
    assert!(refused(|c| c.class_names[1] = "mean".into()).contains("mean"));
    assert!(refused(|c| c.class_names[1] = " ".into()).contains("called"));
    assert!(refused(|c| c.preprocessing.channels.clear()).contains("found 0"));
    assert!(refused(|c| c.preprocessing.channels.extend(one_ct_channel())).contains("twice"));
    let percentiles = |low, high| Intensity::Percentiles { low, high };
    for intensity in [percentiles(99.0, 1.0), percentiles(-1.0, 50.0), percentiles(f64::NAN, 50.0)] {
        let mut config = published();
        config.preprocessing.channels[0].intensity = intensity;
        let error = config.validate().unwrap_err();
        assert!(error.setting.starts_with("preprocessing.channels[0]"), "{error}");
    }
}
