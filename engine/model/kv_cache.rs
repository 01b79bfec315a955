//! The paged KV cache, with prefix sharing.
//!
//! Keys and values live in pages of [`PAGE`] tokens. A sequence is a [`PageTable`]: the pages of
//! its tokens in order. Pages are counted references: all samples of one prompt hold the prompt's
//! pages together, and prompts that begin alike (the two orders of one pair, the system prompt
//! of a whole evaluation) find each other's pages by content.
//!
//! Sharing is exact. A token's keys and values depend only on the tokens up to it, and
//! the kernels give them the same bits in any batch. A page found by content therefore holds
//! exactly what computing it again would write.
//!
//! Differs from vLLM's prefix cache in that pages are found by their tokens, not by a hash of
//! them, so that two different prefixes can never be mistaken for each other.

use std::collections::{HashMap, VecDeque};

use half::bf16;
use kernels::cpu::arena::Arena;
pub use kernels::cpu::attention::PAGE;
use kernels::cpu::attention::{Cache, CacheMut};
use kernels::cpu::heap::fallible;
use kernels::cuda::Buffer;

use crate::checkpoint::config::Config;
use crate::memory::{Room, room};
use crate::tensor::device::{CudaDevice, Device, DeviceError};

/// Element type of cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheDtype {
    /// Two bytes per value, for bf16 and f16 models.
    Bf16,
    /// Four bytes per value, for [`Precision::F32`](super::Precision::F32).
    F32,
}

impl CacheDtype {
    pub(crate) fn size_bytes(self) -> usize {
        match self {
            CacheDtype::Bf16 => 2,
            CacheDtype::F32 => 4,
        }
    }
}

/// Keys and values of one layer, each `[page, kv_head, PAGE, head_dim]`.
enum Layer {
    Bf16 {
        keys: Arena<bf16>,
        values: Arena<bf16>,
    },
    F32 {
        keys: Arena<f32>,
        values: Arena<f32>,
    },
    /// bf16 on a GPU, or why it failed.
    Cuda(CudaDevice, Result<[Buffer<u16>; 2], DeviceError>),
}

impl Layer {
    fn new(device: &Device, dtype: CacheDtype, len: usize) -> std::io::Result<Layer> {
        Ok(match (device, dtype) {
            (Device::Cpu(_), CacheDtype::Bf16) => {
                Layer::Bf16 { keys: Arena::zeroed(len)?, values: Arena::zeroed(len)? }
            }
            (Device::Cpu(_), CacheDtype::F32) => {
                Layer::F32 { keys: Arena::zeroed(len)?, values: Arena::zeroed(len)? }
            }
            (Device::Cuda(cuda), _) => {
                assert_eq!(dtype, CacheDtype::Bf16, "a GPU's keys and values");
                let both =
                    cuda.finish(|gpu| Ok([gpu.lasting_zeros(len)?, gpu.lasting_zeros(len)?]));
                Layer::Cuda(cuda.clone(), both)
            }
        })
    }

    fn copy(&mut self, from: std::ops::Range<usize>, to: usize) {
        match self {
            Layer::Cuda(cuda, both) => cuda.queue(|gpu| {
                for buffer in both.as_mut().map_err(|error| error.clone())? {
                    gpu.copy_within(buffer, to, from.start, from.len())?;
                }
                Ok(())
            }),
            Layer::Bf16 { keys, values } => {
                keys.copy_within(from.clone(), to);
                values.copy_within(from, to);
            }
            Layer::F32 { keys, values } => {
                keys.copy_within(from.clone(), to);
                values.copy_within(from, to);
            }
        }
    }
}

/// The pages of one sequence, in order, and how many tokens they hold.
///
/// Holds references: give it to [`KvCache::release`] when the sequence ends.
#[derive(Debug, Default)]
pub struct PageTable {
    pages: Vec<u32>,
    /// Tokens whose keys and values are in the pages, or are written by the step under way.
    len: usize,
}

impl PageTable {
    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Page numbers, in order.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Takes the memory to list `pages` pages now, so that no step has to grow the list.
    pub(crate) fn reserve(&mut self, pages: usize) {
        self.pages.reserve_exact(pages.saturating_sub(self.pages.len()));
    }
}

/// Identity of a prefix in the index. Never used twice, so an evicted prefix cannot come back as
/// another. 0 is the empty prefix.
type NodeId = u64;

/// A prefix is found by the prefix before its last page and the tokens of that page.
type PrefixKey = (NodeId, [u32; PAGE]);

#[derive(Clone, Default)]
struct Page {
    references: u32,
    /// Set while the page can be found by content.
    prefix: Option<(PrefixKey, NodeId)>,
    /// Ticket in `idle`, to tell a live entry from a stale one.
    idle_since: u64,
}

/// The system has no room for keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes that were asked for.
    pub asked_bytes: u64,
    /// Memory that there is, if the system says.
    pub room: Option<Room>,
}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let asked = self.asked_bytes.div_ceil(1 << 20);
        write!(f, "there is no room for {asked} MiB of keys and values")?;
        if let Some(room) = self.room {
            write!(f, ": {room}")?;
        }
        write!(
            f,
            "; lower the memory for keys and values, or the number of sequences that run at once"
        )
    }
}

impl std::error::Error for NoRoom {}

/// Keys and values of all layers, in a fixed number of pages.
pub struct KvCache {
    layers: Vec<Layer>,
    /// Keys of one page in one layer; as many values.
    page_len: usize,
    pages: Vec<Page>,
    free: Vec<u32>,
    /// Unreferenced pages that can still be found by content, oldest first: (page, ticket).
    idle: VecDeque<(u32, u64)>,
    idle_count: usize,
    prefixes: HashMap<PrefixKey, (NodeId, u32)>,
    next_node: NodeId,
    next_ticket: u64,
}

impl KvCache {
    /// Bytes of one page over all layers.
    pub fn page_bytes(config: &Config, dtype: CacheDtype) -> usize {
        2 * config.num_hidden_layers
            * config.num_key_value_heads
            * config.head_dim
            * PAGE
            * dtype.size_bytes()
    }

    /// Pages that hold `tokens` tokens of one sequence.
    pub fn pages_for(tokens: usize) -> usize {
        tokens.div_ceil(PAGE)
    }

    /// An empty cache of `pages` pages. A CPU's memory is taken as pages are first written, a GPU's at once; if a GPU has too
    /// little, the device has failed.
    pub fn new(
        device: &Device,
        config: &Config,
        dtype: CacheDtype,
        pages: usize,
    ) -> Result<KvCache, NoRoom> {
        assert!(pages > 0 && pages <= u32::MAX as usize, "{pages} pages");
        let no_room = || {
            let asked = KvCache::page_bytes(config, dtype).saturating_mul(pages);
            NoRoom { asked_bytes: asked as u64, room: room() }
        };
        let page_len = config.num_key_value_heads * config.head_dim * PAGE;
        let len = pages.checked_mul(page_len).ok_or_else(no_room)?;
        let layer = |_| Layer::new(device, dtype, len).map_err(|_| no_room());
        let (mut all, mut free) = (Vec::new(), Vec::new());
        fallible(|| all.try_reserve_exact(pages).and_then(|()| free.try_reserve_exact(pages)))
            .map_err(|_| no_room())?;
        all.resize(pages, Page::default());
        // Low pages first, and the page given back last is taken first: memory stays small.
        free.extend((0..pages as u32).rev());
        Ok(KvCache {
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
            page_len,
            pages: all,
            free,
            idle: VecDeque::new(),
            idle_count: 0,
            prefixes: HashMap::new(),
            next_node: 1,
            next_ticket: 0,
        })
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Pages that no sequence holds: the number that [`KvCache::extend`] can take.
    pub(crate) fn available_pages(&self) -> usize {
        self.free.len() + self.idle_count
    }

    /// Keys and values of one layer.
    pub(crate) fn layer(&self, layer: usize) -> Cache<'_> {
        match &self.layers[layer] {
            Layer::Bf16 { keys, values } => Cache::Bf16 { keys, values },
            Layer::F32 { keys, values } => Cache::F32 { keys, values },
            Layer::Cuda(..) => panic!("keys and values are on a GPU"),
        }
    }

    /// Keys and values of one layer, to write to.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> CacheMut<'_> {
        match &mut self.layers[layer] {
            Layer::Bf16 { keys, values } => CacheMut::Bf16 { keys, values },
            Layer::F32 { keys, values } => CacheMut::F32 { keys, values },
            Layer::Cuda(..) => panic!("keys and values are on a GPU"),
        }
    }

    /// Keys and values of one layer on a GPU that works.
    pub(crate) fn on_cuda(&self, layer: usize) -> [&Buffer<u16>; 2] {
        match &self.layers[layer] {
            Layer::Cuda(_, Ok([keys, values])) => [keys, values],
            _ => panic!("keys and values are not on a GPU that works"),
        }
    }

    /// The same, to write to.
    pub(crate) fn on_cuda_mut(&mut self, layer: usize) -> [&mut Buffer<u16>; 2] {
        match &mut self.layers[layer] {
            Layer::Cuda(_, Ok([keys, values])) => [keys, values],
            _ => panic!("keys and values are not on a GPU that works"),
        }
    }

    /// How many leading tokens of `tokens` [`KvCache::attach_prefix`] would find, and how many of
    /// the pages it would take are available now (taking them makes them unavailable).
    pub(crate) fn find_prefix(&self, tokens: &[u32]) -> (usize, usize) {
        let (mut node, mut found, mut idle) = (0, 0, 0);
        for page_tokens in tokens.as_chunks::<PAGE>().0 {
            let Some(&(next, page)) = self.prefixes.get(&(node, *page_tokens)) else { break };
            idle += usize::from(self.pages[page as usize].references == 0);
            found += PAGE;
            node = next;
        }
        (found, idle)
    }

    /// Starts a sequence with the pages that already hold its first tokens. The table's `len` says
    /// how many tokens these are: a multiple of [`PAGE`], and possibly all of `tokens`.
    pub(crate) fn attach_prefix(&mut self, tokens: &[u32]) -> PageTable {
        let mut table = PageTable::default();
        let mut node = 0;
        for page_tokens in tokens.as_chunks::<PAGE>().0 {
            let Some(&(next, page)) = self.prefixes.get(&(node, *page_tokens)) else { break };
            self.retain(page);
            table.pages.push(page);
            table.len += PAGE;
            node = next;
        }
        table
    }

    /// Makes room for `tokens` more tokens, which the next step will write. Panics if there are
    /// too few available pages: the scheduler reserves them first.
    pub fn extend(&mut self, table: &mut PageTable, tokens: usize) {
        table.len += tokens;
        while table.pages.len() < KvCache::pages_for(table.len) {
            let page = self.take_page();
            table.pages.push(page);
        }
    }

    /// Lets other sequences find the full pages of `table`, whose tokens are `tokens`. They may
    /// be found as soon as they are scheduled: each layer writes all keys of a step before any
    /// query of the step reads.
    pub(crate) fn publish_prefix(&mut self, table: &PageTable, tokens: &[u32]) {
        assert!(tokens.len() >= table.len, "{} tokens for {}", tokens.len(), table.len);
        let full_pages = tokens[..table.len].as_chunks::<PAGE>().0;
        let mut node = 0;
        for (page_tokens, &page) in full_pages.iter().zip(&table.pages) {
            let key = (node, *page_tokens);
            node = match self.prefixes.get(&key) {
                Some(&(known, _)) => known,
                None => {
                    let id = self.next_node;
                    self.next_node += 1;
                    self.prefixes.insert(key, (id, page));
                    self.pages[page as usize].prefix = Some((key, id));
                    id
                }
            };
        }
    }

    /// Another sequence with the same tokens so far. Full pages are shared, a last page that is
    /// partly filled is copied.
    pub(crate) fn fork(&mut self, table: &PageTable) -> PageTable {
        let full = table.len / PAGE;
        let mut pages = Vec::with_capacity(table.pages.len());
        for &page in &table.pages[..full] {
            self.retain(page);
            pages.push(page);
        }
        if !table.len.is_multiple_of(PAGE) {
            let page = self.take_page();
            let from = table.pages[full] as usize * self.page_len;
            for layer in &mut self.layers {
                layer.copy(from..from + self.page_len, page as usize * self.page_len);
            }
            pages.push(page);
        }
        PageTable { pages, len: table.len }
    }

    /// Ends a sequence. Pages that can be found by content stay until their room is needed.
    pub fn release(&mut self, table: PageTable) {
        // Last page first: a prefix is useless without what comes before it, so it goes first.
        for page in table.pages.into_iter().rev() {
            let state = &mut self.pages[page as usize];
            state.references -= 1;
            if state.references > 0 {
                continue;
            }
            if state.prefix.is_some() {
                self.next_ticket += 1;
                state.idle_since = self.next_ticket;
                self.idle.push_back((page, self.next_ticket));
                self.idle_count += 1;
            } else {
                self.free.push(page);
            }
        }
        if self.idle.len() > 2 * self.pages.len() {
            let pages = &self.pages;
            self.idle.retain(|&(page, ticket)| pages[page as usize].idle_since == ticket);
        }
    }

    fn retain(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        if state.references == 0 {
            // Its entry in `idle` goes stale: the ticket no longer matches.
            state.idle_since = 0;
            self.idle_count -= 1;
        }
        state.references += 1;
    }

    fn take_page(&mut self) -> u32 {
        let page = self.free.pop().unwrap_or_else(|| self.evict());
        self.pages[page as usize].references = 1;
        page
    }

    /// Forgets the prefix whose page has been idle longest.
    fn evict(&mut self) -> u32 {
        loop {
            let (page, ticket) =
                self.idle.pop_front().expect("the scheduler reserves pages before it takes them");
            let state = &mut self.pages[page as usize];
            if state.idle_since != ticket {
                continue;
            }
            state.idle_since = 0;
            let (key, _) = state.prefix.take().expect("idle pages have a prefix");
            self.prefixes.remove(&key);
            self.idle_count -= 1;
            return page;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: usize = PAGE * 3 + 5;

    fn cache(pages: usize) -> KvCache {
        let config = Config::parse(
            r#"{"model_type": "qwen3", "hidden_size": 8, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
                "intermediate_size": 8, "vocab_size": 16, "rms_norm_eps": 1e-6,
                "rope_theta": 10000, "hidden_act": "silu", "max_position_embeddings": 512}"#,
            std::path::Path::new("config.json"),
        )
        .unwrap();
        KvCache::new(&crate::tensor::check_gradient::device(), &config, CacheDtype::F32, pages)
            .unwrap()
    }

    fn tokens(seed: u32) -> Vec<u32> {
        (0..TOKENS as u32).map(|i| i * 7 + seed).collect()
    }

    fn prefill(cache: &mut KvCache, tokens: &[u32]) -> PageTable {
        let mut table = cache.attach_prefix(tokens);
        let rest = tokens.len() - table.len();
        cache.extend(&mut table, rest);
        cache.publish_prefix(&table, tokens);
        table
    }

    #[test]
    fn equal_prefixes_share_pages_and_different_ones_do_not() {
        let mut cache = cache(16);
        let a = prefill(&mut cache, &tokens(0));
        assert_eq!(cache.find_prefix(&tokens(0)), (3 * PAGE, 0));
        let again = prefill(&mut cache, &tokens(0));
        assert_eq!(again.pages()[..3], a.pages()[..3]);
        assert_ne!(again.pages()[3], a.pages()[3], "the partly filled page is its own");
        // Same second page behind another first page: not a prefix.
        let mut other = tokens(0);
        other[0] += 1;
        assert_eq!(cache.find_prefix(&other), (0, 0));
        let b = prefill(&mut cache, &other);
        assert!(b.pages().iter().all(|page| !a.pages().contains(page)));
        assert_eq!(cache.available_pages(), 16 - 4 - 1 - 4);
    }

    #[test]
    fn released_prefixes_are_found_until_their_room_is_needed() {
        let mut cache = cache(6);
        let a = prefill(&mut cache, &tokens(0));
        cache.release(a);
        assert_eq!(cache.available_pages(), 6);
        assert_eq!(cache.find_prefix(&tokens(0)), (3 * PAGE, 3));
        // Four more pages: two are free, then the deepest two of the old prefix go.
        let b = prefill(&mut cache, &tokens(1));
        assert_eq!(cache.available_pages(), 2);
        assert_eq!(cache.find_prefix(&tokens(0)), (2 * PAGE, 2));
        assert_eq!(cache.find_prefix(&tokens(1)), (3 * PAGE, 0));
        let a = prefill(&mut cache, &tokens(0)[..2 * PAGE]);
        assert_eq!(cache.available_pages(), 0);
        cache.release(b);
        cache.release(a);
        assert_eq!(cache.available_pages(), 6);
    }

    #[test]
    fn an_evicted_prefix_never_comes_back_as_another() {
        let mut cache = cache(4);
        let a = prefill(&mut cache, &tokens(0));
        cache.release(a);
        let b = prefill(&mut cache, &tokens(1));
        cache.release(b);
        assert_eq!(cache.find_prefix(&tokens(0)), (0, 0));
        assert_eq!(cache.find_prefix(&tokens(1)), (3 * PAGE, 3));
        let a = prefill(&mut cache, &tokens(0));
        assert_eq!(a.len(), TOKENS);
        assert_eq!(cache.find_prefix(&tokens(1)), (0, 0));
    }

    #[test]
    fn a_fork_copies_only_the_last_page() {
        let mut cache = cache(8);
        let a = prefill(&mut cache, &tokens(0));
        let last = a.pages()[3] as usize * cache.page_len;
        let CacheMut::F32 { keys, .. } = cache.layer_mut(1) else { unreachable!() };
        keys[last] = 42.0;
        let b = cache.fork(&a);
        assert_eq!((b.len(), &b.pages()[..3]), (a.len(), &a.pages()[..3]));
        let copy = b.pages()[3] as usize * cache.page_len;
        let Cache::F32 { keys, .. } = cache.layer(1) else { unreachable!() };
        assert_eq!(keys[copy], 42.0);
        assert_ne!(copy, last);
        cache.release(a);
        assert_eq!(cache.available_pages(), 4, "b still holds the shared pages");
        cache.release(b);
        assert_eq!(cache.available_pages(), 8);
    }

    #[test]
    fn stale_tickets_do_not_pile_up() {
        let mut cache = cache(4);
        for _ in 0..1000 {
            let a = prefill(&mut cache, &tokens(0));
            cache.release(a);
        }
        assert!(cache.idle.len() <= 2 * 4 + 4, "{}", cache.idle.len());
        assert_eq!(cache.available_pages(), 4);
    }
}
