//! What tests of every part share: frames made to measure, golden captures, a
//! CNI runtime, and the bodies of the fuzz targets, which tests run over the committed
//! corpus.

#![forbid(unsafe_code)]

pub mod cni;
pub mod frames;
pub mod fuzz;
pub mod golden;
pub mod rights;
pub mod sim;
