//! The ground that everything else stands on: files and directories that are found by a fixed name,
//! programs that are started, and the account that all this is done by.
//!
//! What lies behind a fixed name may have been put there by anybody who can write into its
//! directory: by another user, by a build, by a repository. So such a name is opened in one way
//! only, which is here. A link in the last place is not followed, nothing is waited for (a FIFO
//! would have us wait for ever), and what is open is looked at before it is used: it must be of the
//! kind that it should be, belong to this user or to root, and nobody else may write to it.
//! Whatever is wrong is an [`Error`] that names the path; "cannot be read" is never taken for "is
//! not there".
//!
//! | to | use |
//! |---|---|
//! | read, append to, make a file | [`Open`] |
//! | read a small file whole | [`read_record`] |
//! | read what a build or a person has made | [`Open::of_anybody`] |
//! | read and write files of the kernel | [`kernel_text`], [`kernel_bytes`], [`tell_kernel`] |
//! | sync, lock or ask the file system of a directory | [`open_directory`] |
//! | open the file of a lock, hold the lock | [`Open::lock`], [`Held`] |
//! | make or check a directory, name things in it | [`Directory`] |
//! | write a file whole or not at all | [`Replace`] |
//! | ask how long ago something was | [`age`] |
//! | start a program | [`program`](program()), [`program_for_person`] |
//! | wait for a program that may stand still | [`output`](output()), [`Watched`] |
//! | know who we are, and what `~` is | [`account`](account()), [`home`] |
#![warn(unreachable_pub)]
#![deny(unsafe_code)]

mod account;
mod age;
mod directory;
mod error;
mod held;
mod open;
mod owner;
mod program;
mod replace;
#[cfg(test)]
mod tests;
mod watched;

pub use account::{Account, account, home};
pub use age::{age, is_younger};
pub use directory::Directory;
pub use error::{Error, Fault, in_shell};
pub use held::Held;
pub use open::{Open, kernel_bytes, kernel_text, open_directory, own_program, read_record, tell_kernel};
pub use owner::user_name;
pub use program::{begin_anew, open_files, pass, program, program_for_person, raise_open_files, set_signals};
pub use replace::Replace;
pub use watched::{Pauses, Watched, end_with_starter, output, set_patience, stood_still};
