//! The plugin's process given what is wrong: by the environment, on stdin,
//! as a namespace, and by servers that are absent, silent or lying.

mod fake;
mod golden;
mod input;
mod servers;
