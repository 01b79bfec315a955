//! A model.safetensors: header, names, and every tensor of a model looked up in it.
#![no_main]

use engine::checkpoint::weights::Checkpoint;
use j1_fuzz::{file, model, refused};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let config = model();
    let checkpoint = match Checkpoint::open_file(&file("model.safetensors", bytes)) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return refused(error),
    };
    checkpoint.check(&config).map_err(refused).ok();
    for tensor in config.expected_tensors() {
        match checkpoint.tensor(&tensor.name) {
            Ok(Some(view)) => {
                let elements: usize = view.shape.iter().product();
                assert_eq!(view.bytes.len() * 8, elements * view.dtype.bitsize());
                drop(view.to_f32());
            }
            Ok(None) => {}
            Err(error) => refused(error),
        }
    }
});
