//! The last steps before the container's program: which file it is, and the seccomp filter right before execve.
//!
//! The OCI library knows seccomp only with a C library and ignores it silently otherwise; so the filter is installed here,
//! from bytes that were compiled beforehand, and never from `config.json`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::report::{self, Report};
use crate::sys;

/// Where programs are looked for when the environment names no PATH.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Instructions of one filter, BPF_MAXINSNS of the kernel.
const FILTER_INSTRUCTIONS_MAX: usize = 4_096;

/// A compiled seccomp filter.
#[derive(Clone, Default)]
pub(crate) struct Filter(Rc<Vec<libc::sock_filter>>);

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Filter({} instructions)", self.0.len())
    }
}

impl Filter {
    /// Reads `struct sock_filter`s in the machine's byte order. No bytes: no filter.
    ///
    /// # Errors
    /// Bytes that are no whole instructions, or more of them than the kernel takes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        let (instructions, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() || instructions.len() > FILTER_INSTRUCTIONS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the seccomp filter is no whole program"));
        }
        let read = |[a, b, jt, jf, k @ ..]: &[u8; 8]| libc::sock_filter {
            code: u16::from_ne_bytes([*a, *b]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes(*k),
        };
        Ok(Self(Rc::new(instructions.iter().map(read).collect())))
    }

    /// Confines this process. Sets `no_new_privs` first, without which the kernel refuses filters of the unprivileged.
    ///
    /// # Errors
    /// What prctl(2) says.
    pub(crate) fn install(&self) -> io::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        rustix::thread::set_no_new_privs(true)?;
        sys::install_filter(&self.0)
    }
}

/// Finds the file that a command's first word names, as execvp would for this user and this directory.
///
/// # Errors
/// [`Report::NoProgram`] or [`Report::NotExecutable`].
pub(crate) fn find_program(name: &[u8], path: Option<&str>) -> Result<PathBuf, Report> {
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    let shown = || name.display().to_string();
    let executable = |file: &Path| file.is_file() && accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS).is_ok();
    if name.as_os_str().is_empty() {
        return Err(Report::NoProgram(shown()));
    }
    if name.as_os_str().as_bytes().contains(&b'/') {
        return match (name.exists(), executable(name)) {
            (true, true) => Ok(name.to_owned()),
            (true, false) => Err(Report::NotExecutable(shown())),
            (false, _) => Err(Report::NoProgram(shown())),
        };
    }
    let mut found = false;
    for directory in path.filter(|path| !path.is_empty()).unwrap_or(PATH_DEFAULT).split(':') {
        let file = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        if executable(&file) {
            return Ok(file);
        }
        found |= file.is_file();
    }
    Err(if found { Report::NotExecutable(shown()) } else { Report::NoProgram(shown()) })
}

/// C strings of a command or an environment.
///
/// # Errors
/// A zero byte inside one.
pub(crate) fn c_strings<T: Into<Vec<u8>>>(strings: impl IntoIterator<Item = T>) -> io::Result<Vec<CString>> {
    strings.into_iter().map(|s| CString::new(s).map_err(io::Error::from)).collect()
}

/// Runs the program of a container's `config.json` under our filter.
#[derive(Clone)]
pub(crate) struct Launch {
    filter: Filter,
    report: Rc<OwnedFd>,
    found: Rc<RefCell<Option<PathBuf>>>,
    env: Rc<RefCell<Vec<(String, String)>>>,
}

impl Launch {
    pub(crate) fn new(filter: Filter, report: Rc<OwnedFd>) -> Self {
        Self { filter, report, found: Rc::default(), env: Rc::default() }
    }

    fn program(&self) -> Result<PathBuf, ExecutorError> {
        self.found.borrow().clone().ok_or_else(|| ExecutorError::Other("exec before validate".to_owned()))
    }
}

impl Executor for Launch {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let refuse = |text: String| ExecutorValidationError::ArgValidationError(text);
        let process = spec.process().as_ref().ok_or_else(|| refuse("no process in config.json".to_owned()))?;
        let name = process.args().as_ref().and_then(|args| args.first()).map(String::as_str).unwrap_or_default();
        let path = process.env().iter().flatten().find_map(|entry| entry.strip_prefix("PATH="));
        match find_program(name.as_bytes(), path) {
            Ok(program) => {
                *self.found.borrow_mut() = Some(program);
                Ok(())
            }
            Err(why) => {
                // The library would pass on a text only. A failed send is its problem then: the text still arrives.
                let _ = report::send(&*self.report, &why, None);
                Err(refuse(why.to_string()))
            }
        }
    }

    /// Keeps the environment for execve instead of changing this process's own, which is not safe in general.
    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        let mut env: Vec<_> = envs.into_iter().collect();
        env.sort();
        *self.env.borrow_mut() = env;
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let other = |what: &str, error: &dyn std::fmt::Display| ExecutorError::Other(format!("{what}: {error}"));
        let args =
            spec.process().as_ref().and_then(|process| process.args().clone()).ok_or(ExecutorError::InvalidArg)?;
        let args = c_strings(args).map_err(|error| other("arguments", &error))?;
        let env = self.env.borrow().iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
        let env = c_strings(env).map_err(|error| other("environment", &error))?;
        let program = c_strings([self.program()?.as_os_str().as_bytes()]).map_err(|error| other("program", &error))?;
        launch(&self.filter, &self.report, &program[0], &args, &env)
    }
}

/// Default signals, the filter, execve. What fails is reported, and the process ends with the code that users know.
pub(crate) fn launch(
    filter: &Filter,
    socket: &OwnedFd,
    program: &std::ffi::CStr,
    args: &[CString],
    env: &[CString],
) -> ! {
    sys::default_signals();
    let why = match sys::hide_descriptors().and_then(|()| filter.install()) {
        Ok(()) => Report::ExecFailed(sys::execve(program, args, env).raw_os_error().unwrap_or(libc::EIO)),
        Err(error) => Report::Failed(format!("descriptors or seccomp filter: {error}")),
    };
    // Nobody else can be told if even this fails; the exit code stays.
    let _ = report::send(socket, &why, None);
    sys::exit_now(why.exit_code().unwrap_or(125))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_of_broken_bytes_is_refused() {
        assert!(Filter::from_bytes(&[0; 9]).is_err());
        assert!(Filter::from_bytes(&vec![0; 8 * (FILTER_INSTRUCTIONS_MAX + 1)]).is_err());
        let filter = Filter::from_bytes(&[6, 0, 1, 2, 4, 3, 2, 1]).expect("one instruction");
        assert_eq!((filter.0[0].jt, filter.0[0].jf), (1, 2));
    }

    #[test]
    fn programs_are_found_as_execvp_finds_them() {
        assert_eq!(find_program(b"sh", Some("/nowhere:/bin")), Ok(PathBuf::from("/bin/sh")));
        assert_eq!(find_program(b"/bin/sh", None), Ok(PathBuf::from("/bin/sh")));
        assert_eq!(find_program(b"passwd", Some("/etc")), Err(Report::NotExecutable("passwd".to_owned())));
        assert_eq!(find_program(b"/etc", None), Err(Report::NotExecutable("/etc".to_owned())));
        assert_eq!(find_program(b"no-such-program", None), Err(Report::NoProgram("no-such-program".to_owned())));
        assert_eq!(find_program(b"", None), Err(Report::NoProgram(String::new())));
    }
}
