//! Python's pickles read as data: numbers, text, bytes, lists and dicts. Nothing in them is ever called.
//!
//! A pickle is a program that may name any function of Python. The few that stand for plain data (`OrderedDict`,
//! `bytearray`) are known here by their names; every other one is refused with its name.

use bytes::{Buf, Bytes};

/// Steps of the program: a few a value.
pub(super) const STEPS: usize = 100_000;
/// Lists and dicts within one another.
const DEEPEST: u32 = 64;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Pickled {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Bytes),
    Bytes(Bytes),
    /// A list, a tuple or a set.
    List(Nested<Pickled>),
    Dict(Nested<(Pickled, Pickled)>),
    /// A function or class, which only some may be.
    Name(String),
}

/// What is in a list or dict, and how many of them are within one another.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Nested<T> {
    pub items: Vec<T>,
    depth: u32,
}

impl<T> Default for Nested<T> {
    fn default() -> Self {
        Self { items: Vec::new(), depth: 0 }
    }
}

impl<T> Nested<T> {
    fn push(&mut self, item: T, depth: u32) -> Result<(), String> {
        self.depth = self.depth.max(depth + 1);
        if self.depth > DEEPEST {
            return Err(format!("its pickle has more than {DEEPEST} levels"));
        }
        self.items.push(item);
        Ok(())
    }
}

impl Pickled {
    fn depth(&self) -> u32 {
        match self {
            Self::List(nested) => nested.depth,
            Self::Dict(nested) => nested.depth,
            _ => 0,
        }
    }

    /// The text of a key.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }
}

/// Reads a pickle of protocol 2 to 5 in at most so many steps.
///
/// # Errors
/// If it is damaged, or would make something other than plain data; the message says what.
pub(super) fn unpickle(bytes: Bytes, steps: usize) -> Result<Pickled, String> {
    Machine { bytes, stack: Vec::new(), marks: Vec::new(), memo: Vec::new() }.run(steps)
}

struct Machine {
    bytes: Bytes,
    stack: Vec<Pickled>,
    marks: Vec<usize>,
    /// Values that are used again; `None` for lists and dicts, which would be two and not one here.
    memo: Vec<Option<Pickled>>,
}

type Step<T = ()> = Result<T, String>;

impl Machine {
    fn run(mut self, steps: usize) -> Step<Pickled> {
        for _ in 0..steps {
            let code = self.byte()?;
            if code == b'.' {
                return self.pop();
            }
            self.step(code)?;
        }
        Err(format!("its pickle takes more than {steps} steps"))
    }

    fn step(&mut self, code: u8) -> Step {
        match code {
            0x80 => return self.byte().map(|_| ()),   // the protocol
            0x95 => return self.taken(8).map(|_| ()), // a frame
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => {
                let mark = self.mark()?;
                self.stack.truncate(mark);
            }
            b'2' => {
                let top = self.stack.last().cloned().ok_or_else(damaged)?;
                self.stack.push(top);
            }
            b'N' => self.stack.push(Pickled::None),
            0x88 => self.stack.push(Pickled::Bool(true)),
            0x89 => self.stack.push(Pickled::Bool(false)),
            b'J' => {
                let value = i64::from(self.taken(4)?.get_i32_le());
                self.stack.push(Pickled::Int(value));
            }
            b'K' => self.integer(1)?,
            b'M' => self.integer(2)?,
            0x8a => {
                let length = usize::from(self.byte()?);
                let digits = self.taken(length)?;
                let negative = digits.last().is_some_and(|byte| *byte >= 0x80);
                let mut value = [if negative { 0xff } else { 0 }; 8];
                value.get_mut(..length).ok_or("an integer of more than 64 bits")?.copy_from_slice(&digits);
                self.stack.push(Pickled::Int(i64::from_le_bytes(value)));
            }
            b'G' => {
                let value = self.taken(8)?.get_f64();
                self.stack.push(Pickled::Float(value));
            }
            0x8c => self.counted(1, Pickled::Text)?,
            b'X' => self.counted(4, Pickled::Text)?,
            0x8d => self.counted(8, Pickled::Text)?,
            b'C' | b'U' => self.counted(1, Pickled::Bytes)?,
            b'B' | b'T' => self.counted(4, Pickled::Bytes)?,
            0x8e | 0x96 => self.counted(8, Pickled::Bytes)?,
            b']' | b')' | 0x8f => self.stack.push(Pickled::List(Nested::default())),
            b'}' => self.stack.push(Pickled::Dict(Nested::default())),
            b't' | 0x91 => {
                let mark = self.mark()?;
                self.tuple(self.stack.len() - mark)?;
            }
            0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
            b'a' => self.append(1)?,
            b'e' | 0x90 => {
                let mark = self.mark()?;
                self.append(self.stack.len() - mark)?;
            }
            b's' => self.set_items(2)?,
            b'u' => {
                let mark = self.mark()?;
                self.set_items(self.stack.len() - mark)?;
            }
            _ => return self.name_or_memo(code),
        }
        Ok(())
    }

    fn name_or_memo(&mut self, code: u8) -> Step {
        match code {
            0x94 => self.remember(self.memo.len()),
            b'q' => {
                let index = usize::from(self.byte()?);
                self.remember(index)
            }
            b'r' => {
                let index = self.taken(4)?.get_u32_le() as usize;
                self.remember(index)
            }
            b'h' => {
                let index = usize::from(self.byte()?);
                self.recall(index)
            }
            b'j' => {
                let index = self.taken(4)?.get_u32_le() as usize;
                self.recall(index)
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.stack.push(Pickled::Name(format!("{module}.{name}")));
                Ok(())
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(module), Some(name)) = (module.text(), name.text()) else { return Err(damaged()) };
                self.stack.push(Pickled::Name(format!("{module}.{name}")));
                Ok(())
            }
            b'R' => self.call(),
            _ => Err(format!("its pickle has the code 0x{code:02x}, which makes no plain data")),
        }
    }

    /// What a call of one of the known names would make.
    fn call(&mut self) -> Step {
        let (arguments, name) = (self.pop()?, self.pop()?);
        let (Pickled::List(arguments), Pickled::Name(name)) = (arguments, name) else { return Err(damaged()) };
        let made = match (name.as_str(), arguments.items.as_slice()) {
            ("collections.OrderedDict", []) => Pickled::Dict(Nested::default()),
            ("builtins.bytearray" | "__builtin__.bytearray", [Pickled::Bytes(bytes)]) => Pickled::Bytes(bytes.clone()),
            _ => return Err(format!("its pickle calls {name}, and pickles are only read, not run")),
        };
        self.stack.push(made);
        Ok(())
    }

    fn remember(&mut self, index: usize) -> Step {
        // Indexes are given one after the other.
        if index > self.memo.len() {
            return Err(damaged());
        }
        let value = match self.stack.last().ok_or_else(damaged)? {
            Pickled::List(_) | Pickled::Dict(_) => None,
            value => Some(value.clone()),
        };
        if index == self.memo.len() {
            self.memo.push(value);
        } else {
            self.memo[index] = value;
        }
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Step {
        let value = self.memo.get(index).ok_or_else(damaged)?.clone();
        self.stack.push(value.ok_or("its pickle has the same list or dict in two places")?);
        Ok(())
    }

    fn tuple(&mut self, num: usize) -> Step {
        let first = self.stack.len().checked_sub(num).ok_or_else(damaged)?;
        let mut nested = Nested::default();
        for item in self.stack.split_off(first) {
            let depth = item.depth();
            nested.push(item, depth)?;
        }
        self.stack.push(Pickled::List(nested));
        Ok(())
    }

    fn append(&mut self, num: usize) -> Step {
        let first = self.stack.len().checked_sub(num).ok_or_else(damaged)?;
        let items = self.stack.split_off(first);
        let Some(Pickled::List(list)) = self.stack.last_mut() else { return Err(damaged()) };
        for item in items {
            let depth = item.depth();
            list.push(item, depth)?;
        }
        Ok(())
    }

    fn set_items(&mut self, num: usize) -> Step {
        let first = self.stack.len().checked_sub(num).ok_or_else(damaged)?;
        let mut items = self.stack.split_off(first).into_iter();
        let Some(Pickled::Dict(dict)) = self.stack.last_mut() else { return Err(damaged()) };
        while let Some(key) = items.next() {
            let value = items.next().ok_or_else(damaged)?;
            let depth = key.depth().max(value.depth());
            dict.push((key, value), depth)?;
        }
        Ok(())
    }

    fn pop(&mut self) -> Step<Pickled> {
        self.stack.pop().ok_or_else(damaged)
    }

    /// Where the values since the last mark begin.
    fn mark(&mut self) -> Step<usize> {
        self.marks.pop().filter(|mark| *mark <= self.stack.len()).ok_or_else(damaged)
    }

    fn integer(&mut self, num: usize) -> Step {
        let value = self.number(num)?;
        self.stack.push(Pickled::Int(value as i64));
        Ok(())
    }

    fn counted(&mut self, num: usize, make: fn(Bytes) -> Pickled) -> Step {
        let length = self.number(num)?;
        let bytes = self.taken(usize::try_from(length).map_err(|_| damaged())?)?;
        self.stack.push(make(bytes));
        Ok(())
    }

    fn number(&mut self, num: usize) -> Step<u64> {
        Ok(self.taken(num)?.get_uint_le(num))
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.taken(1)?[0])
    }

    fn taken(&mut self, length: usize) -> Step<Bytes> {
        if self.bytes.len() < length { Err(damaged()) } else { Ok(self.bytes.split_to(length)) }
    }

    fn line(&mut self) -> Step<String> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n').ok_or_else(damaged)?;
        let line = self.taken(end + 1)?;
        Ok(String::from_utf8_lossy(&line[..end]).into_owned())
    }
}

fn damaged() -> String {
    "its pickle is damaged".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &'static str) -> Pickled {
        Pickled::Text(Bytes::from_static(text.as_bytes()))
    }

    fn items(value: Pickled) -> Vec<(Pickled, Pickled)> {
        let Pickled::Dict(dict) = value else { panic!("{value:?}") };
        dict.items
    }

    fn read(bytes: &'static [u8]) -> Result<Pickled, String> {
        unpickle(Bytes::from_static(bytes), STEPS)
    }

    /// What Python writes for {"jpg": b"\xff\xd8", "n": -3, "big": 2**40, "x": 0.5, "ok": True, "none": None, "l": [1, "n"]}.
    const BY_PROTOCOL: [&[u8]; 3] = [
        b"\x80\x03}q\0(X\x03\0\0\0jpgq\x01C\x02\xff\xd8q\x02X\x01\0\0\0nq\x03J\xfd\xff\xff\xffX\x03\0\0\0bigq\x04\x8a\x06\
        \0\0\0\0\0\x01X\x01\0\0\0xq\x05G?\xe0\0\0\0\0\0\0X\x02\0\0\0okq\x06\x88X\x04\0\0\0noneq\x07NX\x01\0\0\0lq\x08]q\
        \t(K\x01h\x03eu.",
        b"\x80\x04\x95B\0\0\0\0\0\0\0}\x94(\x8c\x03jpg\x94C\x02\xff\xd8\x94\x8c\x01n\x94J\xfd\xff\xff\xff\x8c\x03big\x94\
        \x8a\x06\0\0\0\0\0\x01\x8c\x01x\x94G?\xe0\0\0\0\0\0\0\x8c\x02ok\x94\x88\x8c\x04none\x94N\x8c\x01l\x94]\x94(K\x01\
        h\x03eu.",
        b"\x80\x05\x95B\0\0\0\0\0\0\0}\x94(\x8c\x03jpg\x94C\x02\xff\xd8\x94\x8c\x01n\x94J\xfd\xff\xff\xff\x8c\x03big\x94\
        \x8a\x06\0\0\0\0\0\x01\x8c\x01x\x94G?\xe0\0\0\0\0\0\0\x8c\x02ok\x94\x88\x8c\x04none\x94N\x8c\x01l\x94]\x94(K\x01\
        h\x03eu.",
    ];

    #[test]
    fn plain_data_of_every_protocol_is_read() {
        for bytes in BY_PROTOCOL {
            let items = items(read(bytes).unwrap());
            let names: Vec<_> = items.iter().map(|(key, _)| key.text().unwrap()).collect();
            assert_eq!(names, ["jpg", "n", "big", "x", "ok", "none", "l"]);
            let values: Vec<_> = items.into_iter().map(|(_, value)| value).collect();
            assert_eq!(values[0], Pickled::Bytes(Bytes::from_static(b"\xff\xd8")));
            assert_eq!(values[1..4], [Pickled::Int(-3), Pickled::Int(1 << 40), Pickled::Float(0.5)]);
            assert_eq!(values[4..6], [Pickled::Bool(true), Pickled::None]);
            let Pickled::List(list) = &values[6] else { panic!("{values:?}") };
            assert_eq!(list.items, [Pickled::Int(1), text("n")]);
        }
    }

    #[test]
    fn known_classes_are_data_and_every_other_is_refused_by_name() {
        let ordered = b"\x80\x04\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94(\x8c\x01a\x94K\x01u.";
        assert_eq!(items(read(ordered).unwrap()), [(text("a"), Pickled::Int(1))]);
        let error = read(b"\x80\x04cos\nsystem\n\x8c\x02id\x85R.").unwrap_err();
        assert!(error.contains("os.system"), "{error}");
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = [&b"\x80\x04"[..], &b"]".repeat(500), &b"a".repeat(499), b"."].concat();
        assert!(unpickle(Bytes::from(deep), STEPS).unwrap_err().contains("levels"));
        let long = [b"N0".repeat(STEPS), b".".to_vec()].concat();
        assert!(unpickle(Bytes::from(long), STEPS).unwrap_err().contains("steps"));
    }
}
