//! UEFI firmware for guests, as distributions install it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::QemuError;

/// Code and variables, where they were seen: Debian and Ubuntu, Fedora and its kin, Arch, openSUSE,
/// Alpine. Without secure boot, which would refuse kernels that nobody signed.
const PLACES: [(&str, &str); 6] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
    ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),
];

/// The two files of UEFI firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uefi {
    /// The program; never written.
    pub code: PathBuf,
    /// The variables: as installed to be copied, or the copy of one guest, which it writes.
    pub variables: PathBuf,
}

impl Uefi {
    /// The firmware of this host.
    ///
    /// # Errors
    /// If there is none.
    pub fn find() -> Result<Self, QemuError> {
        Self::find_in(&PLACES)
    }

    fn find_in(places: &[(&str, &str)]) -> Result<Self, QemuError> {
        let pair = |(code, variables): &(&str, &str)| Uefi { code: code.into(), variables: variables.into() };
        let found = places.iter().map(pair).find(|pair| pair.code.is_file() && pair.variables.is_file());
        found.ok_or(QemuError::NoUefi)
    }

    /// The same with variables of a guest's own. They are copied to `path` unless they are there:
    /// what a guest wrote to them belongs to its disk. Those of another size come from another
    /// host, or from before an upgrade, and this firmware would not start with them.
    ///
    /// # Errors
    /// If they cannot be copied.
    #[expect(
        clippy::disallowed_methods,
        reason = "the firmware is the system's, and what has the name of the copy was removed just now"
    )]
    pub fn with_own_variables(&self, path: &Path) -> Result<Self, QemuError> {
        let failed = |error| QemuError::file("copy UEFI variables to", path)(error);
        let installed = fs::metadata(&self.variables).map_err(failed)?;
        // A link could lead anywhere.
        match fs::symlink_metadata(path) {
            Ok(own) if own.is_file() && own.len() == installed.len() => {}
            own => {
                own.and_then(|_| fs::remove_file(path))
                    .or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
                    .and_then(|()| fs::copy(&self.variables, path))
                    .map_err(failed)?;
            }
        }
        Ok(Self { code: self.code.clone(), variables: path.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_copied_once_unless_the_firmware_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let (code, installed, own) = (path("code"), path("vars"), path("own"));
        assert!(matches!(Uefi::find_in(&[(&code, &installed)]), Err(QemuError::NoUefi)));
        fs::write(&code, "code").unwrap();
        fs::write(&installed, "fresh").unwrap();
        let uefi = Uefi::find_in(&[("/nowhere", "/nowhere"), (&code, &installed)]).unwrap();
        let uefi = uefi.with_own_variables(Path::new(&own)).unwrap();
        fs::write(&own, "taken").unwrap();
        let again = uefi.with_own_variables(Path::new(&own)).unwrap();
        assert_eq!((&again, fs::read_to_string(&own).unwrap().as_str()), (&uefi, "taken"));
        // The firmware was upgraded to one with more variables.
        fs::write(&installed, "afresh").unwrap();
        let upgraded = Uefi::find_in(&[(&code, &installed)]).unwrap();
        upgraded.with_own_variables(Path::new(&own)).unwrap();
        assert_eq!(fs::read_to_string(&own).unwrap(), "afresh");
    }
}
