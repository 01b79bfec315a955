//! A training configuration; what it prints it reads back.
#![no_main]

use j1_fuzz::refused;
use trainer::train::settings::Settings;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Settings::parse("train.toml", text) {
        Ok(settings) => {
            let written = settings.to_toml();
            let read = Settings::parse("config.toml", &written).expect("its own text");
            assert_eq!(read.to_toml(), written);
        }
        Err(error) => refused(error),
    }
    if let Some(line) = text.lines().next() {
        let base = Settings::preset(trainer::train::settings::Preset::J1Nano);
        base.with(line).map_err(refused).ok();
    }
});
