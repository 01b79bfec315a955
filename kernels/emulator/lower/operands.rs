//! Operands to slots.

use super::{Lowered, Lowering};
use crate::lanes::{Class, compare, integer, wide};
use crate::program::{LaneMask, LongConstant, NONE, Register, WordConstant};
use crate::ptx::syntax::{Kind, Operand, RegisterId};
use crate::ptx::token::NumberKind;

/// The class of the slot that a register of this type lies in.
pub(super) fn class_of(kind: Kind) -> Class {
    match kind.width() {
        1 => Class::P,
        64 => Class::D,
        _ => Class::W,
    }
}

impl Lowering<'_> {
    /// A new virtual slot.
    pub(super) fn temporary(&mut self, class: Class) -> u16 {
        let count = &mut self.counts[class as usize];
        *count += 1;
        // Kernels with more are refused once all is lowered.
        (*count - 1).min(NONE as usize) as u16
    }

    pub(super) fn word_constant(&mut self, constant: WordConstant) -> u16 {
        if let Some(&slot) = self.word_constants.get(&constant) {
            return slot;
        }
        let slot = self.temporary(Class::W);
        self.word_constants.insert(constant, slot);
        slot
    }

    pub(super) fn long_constant(&mut self, constant: LongConstant) -> u16 {
        if let Some(&slot) = self.long_constants.get(&constant) {
            return slot;
        }
        let slot = self.temporary(Class::D);
        self.long_constants.insert(constant, slot);
        slot
    }

    pub(super) fn word_immediate(&mut self, value: u32) -> u16 {
        self.word_constant(WordConstant::Immediate(value))
    }

    pub(super) fn kind_of(&self, register: RegisterId) -> Kind {
        self.kernel.registers[register as usize].kind
    }

    /// The slot of a register that must be of the class.
    pub(super) fn register(&self, register: RegisterId, class: Class) -> Lowered<u16> {
        if class_of(self.kind_of(register)) != class {
            return Err(format!("a register of class {class:?} expected"));
        }
        Ok(self.registers[register as usize])
    }

    /// The slot an operand is read from.
    pub(super) fn input(&mut self, operand: &Operand, class: Class) -> Lowered<u16> {
        match class {
            Class::P => self.predicate(operand),
            Class::W => self.word(operand),
            Class::D => self.long(operand),
        }
    }

    /// The slot a result is written to; `_` is written to a slot nobody reads.
    pub(super) fn output(&mut self, operand: &Operand, class: Class) -> Lowered<u16> {
        match operand {
            Operand::Register(register) => self.register(*register, class),
            Operand::Symbol(name, 0) if name == "_" => Ok(self.temporary(class)),
            _ => Err("the result must be a register".to_owned()),
        }
    }

    /// A result as part of a vector: any class.
    pub(super) fn output_register(&mut self, operand: &Operand, bits: u32) -> Lowered<Register> {
        match operand {
            Operand::Register(register) => {
                let kind = self.kind_of(*register);
                let slot = self.registers[*register as usize];
                Ok(Register { class: class_of(kind), width: kind.width() as u8, slot })
            }
            Operand::Symbol(name, 0) if name == "_" => {
                let class = if bits == 64 { Class::D } else { Class::W };
                Ok(Register { class, width: bits as u8, slot: self.temporary(class) })
            }
            _ => Err("the result must be a register".to_owned()),
        }
    }

    pub(super) fn predicate(&mut self, operand: &Operand) -> Lowered<u16> {
        match operand {
            Operand::Register(register) => self.register(*register, Class::P),
            Operand::Not(register) => {
                let slot = self.register(*register, Class::P)?;
                Ok(self.apply_temporary(&compare::NOT, &[slot]))
            }
            Operand::Immediate(bits, _) => {
                let (a, b) = (self.word_immediate((*bits != 0) as u32), self.word_immediate(1));
                Ok(self.apply_temporary(&compare::EQ, &[a, b]))
            }
            _ => Err("a predicate expected".to_owned()),
        }
    }

    /// A 32-bit (or narrower) operand. A 64-bit register is cut to 32 bits.
    pub(super) fn word(&mut self, operand: &Operand) -> Lowered<u16> {
        match operand {
            Operand::Register(register) => match class_of(self.kind_of(*register)) {
                Class::W => self.register(*register, Class::W),
                Class::D => {
                    let slot = self.register(*register, Class::D)?;
                    Ok(self.apply_temporary(&wide::LOW, &[slot]))
                }
                Class::P => Err("a number expected, not a predicate".to_owned()),
            },
            Operand::Immediate(bits, NumberKind::Double) => {
                Ok(self.word_immediate((f64::from_bits(*bits) as f32).to_bits()))
            }
            Operand::Immediate(bits, _) => Ok(self.word_immediate(*bits as u32)),
            Operand::Symbol(name, offset) => self.word_symbol(name, *offset),
            _ => Err("a 32-bit operand expected".to_owned()),
        }
    }

    /// A 16-bit or 8-bit operand, extended to 32 bits by its sign or with zeros.
    pub(super) fn narrow(&mut self, operand: &Operand, kind: Kind) -> Lowered<u16> {
        if let Operand::Immediate(bits, NumberKind::Integer) = operand {
            let extended = match kind {
                Kind::Signed(8) => *bits as i8 as i32 as u32,
                Kind::Signed(16) => *bits as i16 as i32 as u32,
                _ if kind.width() == 8 => *bits as u32 & 0xff,
                _ => *bits as u32 & 0xffff,
            };
            return Ok(self.word_immediate(extended));
        }
        let slot = self.word(operand)?;
        let operation = match kind {
            Kind::Signed(8) => &integer::EXTEND_BYTE,
            Kind::Signed(16) => &integer::EXTEND_HALF,
            _ if kind.width() == 8 => &integer::LOW_BYTE,
            _ => match operand {
                // Half registers have zeros above already.
                Operand::Register(register) if self.kind_of(*register).width() == 16 => {
                    return Ok(slot);
                }
                _ => &integer::LOW_HALF,
            },
        };
        Ok(self.apply_temporary(operation, &[slot]))
    }

    /// A 64-bit operand. A narrower register is extended with zeros.
    pub(super) fn long(&mut self, operand: &Operand) -> Lowered<u16> {
        match operand {
            Operand::Register(register) => match class_of(self.kind_of(*register)) {
                Class::D => self.register(*register, Class::D),
                Class::W => {
                    let slot = self.register(*register, Class::W)?;
                    Ok(self.apply_temporary(&wide::EXTEND_U, &[slot]))
                }
                Class::P => Err("a number expected, not a predicate".to_owned()),
            },
            Operand::Immediate(bits, NumberKind::Single) => {
                let value = f64::from(f32::from_bits(*bits as u32));
                Ok(self.long_constant(LongConstant::Immediate(value.to_bits())))
            }
            Operand::Immediate(bits, _) => Ok(self.long_constant(LongConstant::Immediate(*bits))),
            Operand::Symbol(name, offset) => {
                if let Some(constant) = self.address_of(name, *offset) {
                    return Ok(self.long_constant(constant));
                }
                let slot = self.word_symbol(name, *offset)?;
                Ok(self.apply_temporary(&wide::EXTEND_U, &[slot]))
            }
            _ => Err("a 64-bit operand expected".to_owned()),
        }
    }

    /// The address of a variable: in its own space for shared and local ones.
    pub(super) fn address_of(&self, name: &str, offset: i64) -> Option<LongConstant> {
        let place = self.shared.get(name).or_else(|| self.local.get(name)).copied();
        let place = place.or_else(|| {
            let parameter = self.kernel.parameters.iter().find(|p| p.name == name)?;
            Some(parameter.offset)
        });
        if let Some(place) = place {
            return Some(LongConstant::Immediate((place as i64).wrapping_add(offset) as u64));
        }
        let index = self.module.variables.iter().position(|variable| variable.name == name)?;
        Some(LongConstant::Variable(index as u32, offset))
    }

    fn word_symbol(&mut self, name: &str, offset: i64) -> Lowered<u16> {
        if let Some(LongConstant::Immediate(address)) = self.address_of(name, offset) {
            return Ok(self.word_immediate(address as u32));
        }
        let constant = special_register(name).ok_or_else(|| format!("unknown name `{name}`"))?;
        Ok(self.word_constant(constant))
    }
}

fn special_register(name: &str) -> Option<WordConstant> {
    let (base, axis) = match name.rsplit_once('.') {
        Some((base, "x")) => (base, Some(0)),
        Some((base, "y")) => (base, Some(1)),
        Some((base, "z")) => (base, Some(2)),
        Some(_) => return None,
        None => (name, None),
    };
    Some(match (base, axis) {
        ("%tid", Some(axis)) => WordConstant::ThreadIndex(axis),
        ("%ntid", Some(axis)) => WordConstant::BlockSize(axis),
        ("%ctaid", Some(axis)) => WordConstant::BlockIndex(axis),
        ("%nctaid", Some(axis)) => WordConstant::GridSize(axis),
        ("%laneid", None) => WordConstant::Lane,
        ("%warpid", None) => WordConstant::Warp,
        ("%nwarpid", None) => WordConstant::WarpsPerBlock,
        ("WARP_SZ", None) => WordConstant::Immediate(32),
        ("%lanemask_eq", None) => WordConstant::LaneMask(LaneMask::Equal),
        ("%lanemask_lt", None) => WordConstant::LaneMask(LaneMask::Less),
        ("%lanemask_le", None) => WordConstant::LaneMask(LaneMask::LessEqual),
        ("%lanemask_gt", None) => WordConstant::LaneMask(LaneMask::Greater),
        ("%lanemask_ge", None) => WordConstant::LaneMask(LaneMask::GreaterEqual),
        ("%dynamic_smem_size", None) => WordConstant::DynamicSharedSize,
        ("%total_smem_size", None) => WordConstant::TotalSharedSize,
        _ => return None,
    })
}
