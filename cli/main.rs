//! `j1`: judge, evaluate and train tiny reasoning reward models.

fn main() {}
