//! CUDA graphs: work that is captured once and launched as a whole.
//!
//! A captured graph runs on the addresses that it was captured with. Its inputs and results are buffers of its owner,
//! who must keep them. Its temporary buffers come from a [`Workspace`], which keeps them: each launch writes there
//! again, so nobody else may hold them. The graphs of one workspace share it. They run one after the other, and none
//! reads from the workspace what it has not written there itself.

use std::sync::{Arc, PoisonError};

use super::driver::{Capture, Executable};
use super::{CAPTURING, Error, Gpu, Inner, lock};

/// Temporary memory of captured graphs. It goes back to the pool with the last of them.
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

/// A captured CUDA graph, made by [`Gpu::capture`].
pub struct Graph {
    executable: Executable,
    name: &'static str,
    workspace: Arc<Workspace>,
}

/// While it lives, what this thread queues is captured.
struct Capturing<'a>(&'a Gpu);

impl<'a> Capturing<'a> {
    fn new(gpu: &'a Gpu, name: &'static str, workspace: &Workspace) -> Capturing<'a> {
        lock(&gpu.0.pool).capturing = Some(workspace.id);
        let inner: *const Inner = &*gpu.0;
        CAPTURING.set(Some((inner, name)));
        Capturing(gpu)
    }
}

impl Drop for Capturing<'_> {
    fn drop(&mut self) {
        CAPTURING.set(None);
        lock(&self.0.0.pool).capturing = None;
    }
}

impl Gpu {
    /// An empty workspace.
    pub fn workspace(&self) -> Result<Arc<Workspace>, Error> {
        let id = lock(&self.0.pool).open_workspace();
        Ok(Arc::new(Workspace { id, gpu: self.clone() }))
    }

    /// Captures what `work` queues, instead of running it. Errors name the graph `name`. Other threads that use this
    /// device wait meanwhile.
    ///
    /// # Errors
    /// The error of `work`. A copy from or to the host and a wait, which cannot be captured. Memory that runs out.
    ///
    /// # Panics
    /// If this thread captures already, or the workspace is another device's.
    pub fn capture(
        &self,
        name: &'static str,
        workspace: &Arc<Workspace>,
        work: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Graph, Error> {
        assert!(CAPTURING.get().is_none(), "a capture within another");
        assert!(Arc::ptr_eq(&workspace.gpu.0, &self.0), "a workspace of {:?}", workspace.gpu);
        self.make_room()?;
        // Makes the context this thread's.
        drop(self.0.enter()?);
        let _alone = self.0.capturing.write().unwrap_or_else(PoisonError::into_inner);
        let what = format!("capturing {name}");
        // SAFETY: the stream is self's, and the capture ends in here.
        let capture = unsafe { Capture::begin(self, &what)? };
        let capturing = Capturing::new(self, name, workspace);
        work()?;
        drop(capturing);
        let executable = capture.end(&what)?;
        Ok(Graph { executable, name, workspace: workspace.clone() })
    }
}

impl Graph {
    /// Queues the graph.
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
