//! Graphs: work that is recorded once and launched as a whole.
//!
//! A recording runs on the addresses it was made with. What it reads and what it leaves are buffers of its
//! owner, who must keep them. What it takes on its way comes from a [`Workspace`], which keeps it: launched
//! again, the recording writes there again, and nobody else may hold it. Recordings of one workspace share it,
//! since they run one after the other and none finds anything there that it has not written.

use std::sync::{Arc, PoisonError};

use super::driver::{Capture, Executable};
use super::{Error, Gpu, Inner, RECORDED, lock};

/// Memory for what recordings take and drop on their way. It goes back to the pool with the last of them.
#[derive(Debug)]
pub struct Workspace {
    id: u64,
    gpu: Gpu,
}

impl Drop for Workspace {
    fn drop(&mut self) {
        lock(&self.gpu.0.pool).close_workspace(self.id);
    }
}

/// Recorded work, made by [`Gpu::record`].
pub struct Graph {
    executable: Executable,
    name: &'static str,
    workspace: Arc<Workspace>,
}

/// What is recorded while it lives.
struct Recording<'a>(&'a Gpu);

impl<'a> Recording<'a> {
    fn new(gpu: &'a Gpu, name: &'static str, workspace: &Workspace) -> Recording<'a> {
        lock(&gpu.0.pool).recording = Some(workspace.id);
        let inner: *const Inner = &*gpu.0;
        RECORDED.set(Some((inner, name)));
        Recording(gpu)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        RECORDED.set(None);
        lock(&self.0.0.pool).recording = None;
    }
}

impl Gpu {
    /// A workspace, which is empty.
    pub fn workspace(&self) -> Result<Arc<Workspace>, Error> {
        let id = lock(&self.0.pool).open_workspace();
        Ok(Arc::new(Workspace { id, gpu: self.clone() }))
    }

    /// Records what `work` queues instead of running it; `name` is said of errors. Other threads that use this device
    /// wait meanwhile.
    ///
    /// # Errors
    /// What `work` returns; what it asks of the host, for copies from there, copies to it and waiting cannot be
    /// recorded; memory that runs out.
    ///
    /// # Panics
    /// If this thread records already, or the workspace is another device's.
    pub fn record(
        &self,
        name: &'static str,
        workspace: &Arc<Workspace>,
        work: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Graph, Error> {
        assert!(RECORDED.get().is_none(), "a recording within another");
        assert!(Arc::ptr_eq(&workspace.gpu.0, &self.0), "a workspace of {:?}", workspace.gpu);
        self.make_room()?;
        // Makes the context this thread's.
        drop(self.0.enter()?);
        let _alone = self.0.recording.write().unwrap_or_else(PoisonError::into_inner);
        let what = format!("recording {name}");
        // SAFETY: the stream is self's, and the capture ends in here.
        let capture = unsafe { Capture::begin(self, &what)? };
        let recording = Recording::new(self, name, workspace);
        work()?;
        drop(recording);
        let executable = capture.end(&what)?;
        Ok(Graph { executable, name, workspace: workspace.clone() })
    }
}

impl Graph {
    /// Queues what was recorded.
    pub fn launch(&mut self) -> Result<(), Error> {
        let gpu = &self.workspace.gpu;
        let _entered = gpu.0.enter()?;
        *lock(&gpu.0.last) = self.name;
        gpu.0.count(|queued| queued.graphs += 1);
        self.executable.launch(gpu, self.name)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Its last launch has run before the driver forgets it.
        let _ = self.workspace.gpu.synchronize();
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {:?}", self.name, self.workspace.gpu)
    }
}
