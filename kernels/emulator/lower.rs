//! Statements to compact instructions.
//!
//! Every operand becomes a slot: immediates, parameters and special registers are slots too, filled
//! once per launch or block, so that the execution loop has no kinds of operands. First every
//! register has a virtual slot of its own; then [`slots`] lets registers that do not live at the same
//! time share one.
//!
//! 16-bit and 8-bit arithmetic is done in 32 bits on extended operands; its extra instructions are of
//! category `Free`. An opcode is taken apart modifier by modifier, and what nobody asked for refuses
//! the kernel.

mod arithmetic;
mod control;
mod convert;
mod exchange;
mod flow;
mod logic;
mod memory;
mod opcode;
mod operands;
mod slots;

use std::collections::HashMap;

use crate::checks::limits;
use crate::fault::LoadError;
use crate::lanes::{Class, Operation};
use crate::program::{
    Action, Category, Detail, Instruction, LongConstant, NONE, Origin, Program, WordConstant,
};
use crate::ptx::syntax::{Kernel, Module, Operand, Statement, Variable};
use opcode::Opcode;

/// Why a statement cannot be lowered; its line and opcode are added above.
type Refusal = String;
type Lowered<T = ()> = Result<T, Refusal>;

/// Lowers one kernel of a module.
pub(crate) fn lower(kernel: &Kernel, module: &Module) -> Result<Program, LoadError> {
    let mut lowering = Lowering::new(kernel, module);
    let layout = Layout::new(kernel, module)?;
    lowering.shared = layout.shared;
    lowering.local = layout.local;
    lowering.dynamic_base = layout.dynamic_base;
    let mut starts = Vec::with_capacity(kernel.statements.len() + 1);
    for statement in &kernel.statements {
        starts.push(lowering.drafts.len() as u32);
        lowering.statement(statement).map_err(|message| LoadError::Instruction {
            line: statement.line,
            kernel: kernel.name.clone(),
            opcode: statement.opcode.clone(),
            message,
        })?;
    }
    // A kernel may end without `ret`, and a label may stand at the very end.
    starts.push(lowering.drafts.len() as u32);
    let end =
        Instruction { action: Action::Exit, category: Category::Control, ..Instruction::nothing() };
    lowering.push(end, None, &[]);
    let line = kernel.statements.last().map_or(0, |statement| statement.line);
    let origin = Origin { line, source: None, opcode: "ret".to_owned() };
    lowering.origins.resize(lowering.drafts.len(), origin);

    for draft in &mut lowering.drafts {
        if draft.instruction.action == Action::Branch {
            let target = starts[draft.instruction.immediate as usize];
            draft.instruction.immediate = target;
        }
    }
    let limit = |message: String| LoadError::Limits { kernel: kernel.name.clone(), message };
    if lowering.counts.iter().any(|&count| count >= NONE as usize) {
        return Err(limit("more registers than the emulator numbers".to_owned()));
    }
    let graph = flow::Graph::new(&lowering.drafts);
    graph.set_reconvergence(&mut lowering.drafts);
    let sizes = slots::assign(&mut lowering, &graph);
    let parameters: Vec<_> = kernel.parameters.iter().map(|p| (p.offset, p.size)).collect();
    let parameter_bytes = parameters.last().map_or(0, |&(offset, size)| offset + size);
    if parameter_bytes > limits::ARGUMENT_BYTES {
        return Err(limit(format!("{parameter_bytes} bytes of parameters")));
    }
    Ok(Program {
        name: kernel.name.clone(),
        code: lowering.drafts.iter().map(|draft| draft.instruction).collect(),
        details: lowering.details,
        origins: lowering.origins,
        words: sizes[Class::W as usize],
        longs: sizes[Class::D as usize],
        predicates: sizes[Class::P as usize],
        word_constants: lowering.word_constants.iter().map(|(&c, &slot)| (slot, c)).collect(),
        long_constants: lowering.long_constants.iter().map(|(&c, &slot)| (slot, c)).collect(),
        parameters,
        parameter_bytes,
        static_shared: layout.static_shared,
        dynamic_base: layout.dynamic_base,
        local_bytes: layout.local_bytes,
        max_threads: kernel.max_threads,
        required_threads: kernel.required_threads,
    })
}

/// An instruction whose slots may still be virtual.
struct Draft {
    instruction: Instruction,
    /// Class of `d`, if it is written.
    output: Option<Class>,
    /// Classes of the inputs.
    inputs: &'static [Class],
    /// Whether the detail's registers belong to it.
    has_detail: bool,
}

/// Addresses of a kernel's shared and local variables.
struct Layout {
    shared: HashMap<String, usize>,
    local: HashMap<String, usize>,
    static_shared: usize,
    dynamic_base: usize,
    local_bytes: usize,
}

impl Layout {
    fn new(kernel: &Kernel, module: &Module) -> Result<Layout, LoadError> {
        let place = |variables: &mut dyn Iterator<Item = &Variable>| {
            let (mut places, mut end) = (HashMap::new(), 0usize);
            for variable in variables {
                let start = end.next_multiple_of(variable.align.max(1));
                places.insert(variable.name.clone(), start);
                end = start + variable.size;
            }
            (places, end)
        };
        let (mut shared, static_shared) =
            place(&mut module.shared.iter().chain(kernel.shared.iter()));
        let (local, local_bytes) = place(&mut kernel.local.iter());
        let align = module.dynamic_shared.iter().map(|variable| variable.align).max();
        let dynamic_base = static_shared.next_multiple_of(align.unwrap_or(1).max(16));
        for variable in &module.dynamic_shared {
            shared.insert(variable.name.clone(), dynamic_base);
        }
        let limit =
            |message: String| Err(LoadError::Limits { kernel: kernel.name.clone(), message });
        if static_shared > limits::SHARED_PER_BLOCK {
            return limit(format!("{static_shared} bytes of static shared memory"));
        }
        if local_bytes > limits::LOCAL_PER_THREAD {
            return limit(format!("{local_bytes} bytes of local memory"));
        }
        Ok(Layout { shared, local, static_shared, dynamic_base, local_bytes })
    }
}

struct Lowering<'a> {
    kernel: &'a Kernel,
    module: &'a Module,
    drafts: Vec<Draft>,
    details: Vec<Detail>,
    origins: Vec<Origin>,
    /// Virtual slot of each register, in its class.
    registers: Vec<u16>,
    /// Virtual slots used so far, by class.
    counts: [usize; 3],
    word_constants: HashMap<WordConstant, u16>,
    long_constants: HashMap<LongConstant, u16>,
    shared: HashMap<String, usize>,
    local: HashMap<String, usize>,
    dynamic_base: usize,
}

impl<'a> Lowering<'a> {
    fn new(kernel: &'a Kernel, module: &'a Module) -> Lowering<'a> {
        let mut lowering = Lowering {
            kernel,
            module,
            drafts: Vec::new(),
            details: Vec::new(),
            origins: Vec::new(),
            registers: Vec::with_capacity(kernel.registers.len()),
            counts: [0; 3],
            word_constants: HashMap::new(),
            long_constants: HashMap::new(),
            shared: HashMap::new(),
            local: HashMap::new(),
            dynamic_base: 0,
        };
        for register in &kernel.registers {
            let slot = lowering.temporary(operands::class_of(register.kind));
            lowering.registers.push(slot);
        }
        lowering
    }

    fn statement(&mut self, statement: &Statement) -> Lowered {
        let first = self.drafts.len();
        let named = self.counts;
        let mut opcode = Opcode::parse(&statement.opcode);
        let operands = &statement.operands;
        let known = arithmetic::lower(self, &mut opcode, operands)?
            || logic::lower(self, &mut opcode, operands)?
            || convert::lower(self, &mut opcode, operands)?
            || memory::lower(self, &mut opcode, operands)?
            || exchange::lower(self, &mut opcode, operands)?
            || control::lower(self, &mut opcode, operands)?;
        if !known {
            return Err("unknown instruction".to_owned());
        }
        opcode.finish()?;
        if let Some(guard) = statement.guard {
            let slot = self.register(guard.register, Class::P)?;
            for draft in &mut self.drafts[first..] {
                // What only fills a temporary does so for all lanes, so that the temporary's life
                // begins there and not at the kernel's start.
                let fills_temporary = draft.instruction.action == Action::Lanes
                    && draft
                        .output
                        .is_some_and(|class| draft.instruction.d as usize >= named[class as usize]);
                if !fills_temporary && draft.instruction.guard == NONE {
                    draft.instruction.guard = slot;
                    draft.instruction.guard_negated = guard.negated;
                }
            }
        }
        let origin = Origin {
            line: statement.line,
            source: self.source(statement),
            opcode: statement.opcode.clone(),
        };
        self.origins.resize(self.drafts.len(), origin);
        Ok(())
    }

    /// The line to name: of the project's own files, so not one of a CUDA header that was inlined.
    fn source(&self, statement: &Statement) -> Option<(u32, u32)> {
        let own = |(file, _): &(u32, u32)| {
            let name = self.module.files.get(file);
            name.is_some_and(|name| name.ends_with(".cu") || name.ends_with(".cuh"))
        };
        let places = [statement.source, statement.inlined_at];
        places.into_iter().flatten().find(own).or(statement.source)
    }

    fn push(&mut self, instruction: Instruction, output: Option<Class>, inputs: &'static [Class]) {
        self.drafts.push(Draft { instruction, output, inputs, has_detail: false });
    }

    /// An instruction whose other registers and facts are in a detail.
    fn push_detailed(
        &mut self,
        mut instruction: Instruction,
        output: Option<Class>,
        inputs: &'static [Class],
        detail: Detail,
    ) {
        instruction.detail = self.details.len() as u32;
        self.details.push(detail);
        self.drafts.push(Draft { instruction, output, inputs, has_detail: true });
    }

    /// An operation on slots.
    fn apply(&mut self, operation: &Operation, category: Category, d: u16, inputs: &[u16]) {
        assert_eq!(inputs.len(), operation.inputs.len(), "operands of {}", operation.name);
        let mut slots = [0; 4];
        slots[..inputs.len()].copy_from_slice(inputs);
        let instruction = Instruction {
            function: operation.function(),
            inputs: slots,
            d,
            action: Action::Lanes,
            category,
            ..Instruction::nothing()
        };
        self.push(instruction, Some(operation.output), operation.inputs);
    }

    /// An operation on slots whose result is a new temporary.
    fn apply_temporary(&mut self, operation: &Operation, inputs: &[u16]) -> u16 {
        let d = self.temporary(operation.output);
        self.apply(operation, Category::Free, d, inputs);
        d
    }

    /// An operation whose operands are as PTX writes them: result first.
    fn lanes(
        &mut self,
        operation: &Operation,
        category: Category,
        operands: &[Operand],
    ) -> Lowered {
        let [result, sources @ ..] = operands else {
            return Err("operands are missing".to_owned());
        };
        if sources.len() != operation.inputs.len() {
            return Err(format!("{} operands, not {}", operation.inputs.len(), sources.len()));
        }
        let mut slots = [0; 4];
        for ((slot, source), &class) in slots.iter_mut().zip(sources).zip(operation.inputs) {
            *slot = self.input(source, class)?;
        }
        let d = self.output(result, operation.output)?;
        self.apply(operation, category, d, &slots[..sources.len()]);
        Ok(())
    }
}
