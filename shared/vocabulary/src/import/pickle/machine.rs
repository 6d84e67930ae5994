use super::class::{Allowed, Class};
use super::cursor::{Cursor, text};
use super::value::{Pickle, Value, ValueId};
use super::{MAX_PUSHES, MAX_STACK, Refused, opcode};

/// Reads a pickle that is all of `bytes` and asks for `allowed` names only.
///
/// # Errors
/// Everything else, with its place.
pub(in super::super) fn read(bytes: &[u8], allowed: Allowed) -> Result<Pickle<'_>, Refused> {
    let (pickle, len) = read_first(bytes, allowed)?;
    match bytes.len() - len {
        0 => Ok(pickle),
        num_more => {
            Err(Refused { at: len, problem: format!("pickle ends before the file's last {num_more} bytes") })
        }
    }
}

/// Reads the pickle that `bytes` begin with; where it ends.
///
/// # Errors
/// As [`read`].
pub(in super::super) fn read_first(bytes: &[u8], allowed: Allowed) -> Result<(Pickle<'_>, usize), Refused> {
    let mut machine = Machine {
        input: Cursor::new(bytes),
        allowed,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        num_pushes: 0,
    };
    loop {
        let at = machine.input.at;
        let refused = |problem| Refused { at, problem: format!("pickle {problem}") };
        if let Some(root) = machine.step().map_err(refused)? {
            return Ok((Pickle { values: machine.values, root }, machine.input.at));
        }
    }
}

struct Machine<'a> {
    input: Cursor<'a>,
    allowed: Allowed,
    values: Vec<Value<'a>>,
    stack: Vec<ValueId>,
    /// Heights of the stack that nothing pops below.
    marks: Vec<usize>,
    memo: Vec<ValueId>,
    num_pushes: usize,
}

type Result<T, E = String> = std::result::Result<T, E>;

impl<'a> Machine<'a> {
    /// One opcode; the pickle's value at its end.
    fn step(&mut self) -> Result<Option<ValueId>> {
        let is_first = self.input.at == 0;
        match self.input.byte().map_err(|_| "ends without STOP")? {
            opcode::STOP => return self.stop().map(Some),
            opcode::PROTO if is_first => match self.input.byte()? {
                2..=5 => (),
                other => return Err(format!("is of protocol {other}; 2 to 5 are read")),
            },
            opcode::PROTO => return Err("has PROTO after its beginning".to_owned()),
            opcode::FRAME => {
                let len = u64::from_le_bytes(self.input.array()?);
                if len > self.input.num_left() as u64 {
                    return Err(format!(
                        "has a frame of {len} bytes where {} are left",
                        self.input.num_left()
                    ));
                }
            }
            opcode::MARK => {
                self.count_push()?;
                self.marks.push(self.stack.len());
            }
            opcode::NONE => self.push(Value::None)?,
            opcode::NEWTRUE => self.push(Value::Bool(true))?,
            opcode::NEWFALSE => self.push(Value::Bool(false))?,
            opcode::BININT1 => {
                let int = self.input.byte()?;
                self.push(Value::Int(int.into()))?;
            }
            opcode::BININT2 => {
                let int = u16::from_le_bytes(self.input.array()?);
                self.push(Value::Int(int.into()))?;
            }
            opcode::BININT => {
                let int = i32::from_le_bytes(self.input.array()?);
                self.push(Value::Int(int.into()))?;
            }
            opcode::LONG1 => {
                let bytes = self.input.sized_by_1()?;
                self.push(long(bytes))?;
            }
            opcode::SHORT_BINUNICODE => {
                let bytes = self.input.sized_by_1()?;
                self.push(Value::Text(text(bytes)?))?;
            }
            opcode::BINUNICODE => {
                let bytes = self.input.sized_by_4()?;
                self.push(Value::Text(text(bytes)?))?;
            }
            opcode::SHORT_BINBYTES => {
                let bytes = self.input.sized_by_1()?;
                self.push(Value::Bytes(bytes))?;
            }
            opcode::BINBYTES => {
                let bytes = self.input.sized_by_4()?;
                self.push(Value::Bytes(bytes))?;
            }
            opcode::BINBYTES8 => {
                let bytes = self.input.sized_by_8()?;
                self.push(Value::Bytes(bytes))?;
            }
            opcode::EMPTY_LIST => self.push(Value::List(Vec::new()))?,
            opcode::EMPTY_DICT => self.push(Value::Dict(Vec::new()))?,
            opcode::EMPTY_TUPLE => self.push(Value::Tuple(Vec::new()))?,
            opcode::TUPLE1 => self.tuple(1)?,
            opcode::TUPLE2 => self.tuple(2)?,
            opcode::TUPLE3 => self.tuple(3)?,
            opcode::TUPLE => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))?;
            }
            opcode::APPEND => {
                let item = self.pop()?;
                self.list()?.push(item);
            }
            opcode::APPENDS => {
                let items = self.pop_to_mark()?;
                self.list()?.extend(items);
            }
            opcode::SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.dict()?.push([key, value]);
            }
            opcode::SETITEMS => {
                let items = self.pop_to_mark()?;
                let (pairs, []) = items.as_chunks::<2>() else {
                    return Err("sets a key without a value".to_owned());
                };
                self.dict()?.extend(pairs);
            }
            opcode::MEMOIZE => self.put(self.memo.len())?,
            opcode::BINPUT => {
                let idx = self.input.byte()?;
                self.put(usize::from(idx))?;
            }
            opcode::LONG_BINPUT => {
                let idx = u32::from_le_bytes(self.input.array()?);
                self.put(idx as usize)?;
            }
            opcode::BINGET => {
                let idx = self.input.byte()?;
                self.get(usize::from(idx))?;
            }
            opcode::LONG_BINGET => {
                let idx = u32::from_le_bytes(self.input.array()?);
                self.get(idx as usize)?;
            }
            opcode::GLOBAL => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.push(Value::Class(Class::find(module, name, self.allowed)?))?;
            }
            opcode::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) =
                    (&self.values[module.idx()], &self.values[name.idx()])
                else {
                    return Err("asks for a name that is no text".to_owned());
                };
                let class = Class::find(module, name, self.allowed)?;
                self.push(Value::Class(class))?;
            }
            opcode::NEWOBJ => self.object(Class::is_made_by_newobj)?,
            opcode::REDUCE => self.object(Class::is_called_by_reduce)?,
            opcode::BUILD => {
                let new_state = self.pop()?;
                match self.top()? {
                    Value::Object { state: state @ None, .. } => *state = Some(new_state),
                    Value::Object { .. } => return Err("gives an object two states".to_owned()),
                    _ => return Err("gives a state to what is no object".to_owned()),
                }
            }
            opcode::BINPERSID if (self.allowed)(Class::FloatStorage) => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))?;
            }
            other => return Err(opcode::refused(other)),
        }
        Ok(None)
    }

    fn stop(&mut self) -> Result<ValueId> {
        let root = self.pop()?;
        if self.stack.is_empty() && self.marks.is_empty() {
            Ok(root)
        } else {
            Err("ends with values left over".to_owned())
        }
    }

    /// Every push costs memory; so do marks.
    fn count_push(&mut self) -> Result<()> {
        self.num_pushes += 1;
        if self.num_pushes > MAX_PUSHES {
            return Err(format!("has over {MAX_PUSHES} values"));
        }
        if self.stack.len() + self.marks.len() >= MAX_STACK {
            return Err(format!("puts over {MAX_STACK} values on its stack"));
        }
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        self.count_push()?;
        // Fewer than MAX_PUSHES.
        self.stack.push(ValueId(self.values.len() as u32));
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<ValueId> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(id) if self.stack.len() >= floor => Ok(id),
            _ => Err("takes a value where there is none".to_owned()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<ValueId>> {
        let mark = self.marks.pop().ok_or("goes back to a mark where there is none")?;
        Ok(self.stack.split_off(mark))
    }

    fn top(&mut self) -> Result<&mut Value<'a>> {
        let id = self.pop()?;
        self.stack.push(id);
        Ok(&mut self.values[id.idx()])
    }

    fn list(&mut self) -> Result<&mut Vec<ValueId>> {
        match self.top()? {
            Value::List(items) => Ok(items),
            _ => Err("appends to what is no list".to_owned()),
        }
    }

    fn dict(&mut self) -> Result<&mut Vec<[ValueId; 2]>> {
        match self.top()? {
            Value::Dict(items) => Ok(items),
            _ => Err("sets a key of what is no dictionary".to_owned()),
        }
    }

    fn tuple(&mut self, len: usize) -> Result<()> {
        let mut items = (0..len).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
        items.reverse();
        self.push(Value::Tuple(items))
    }

    /// An object of the class below the arguments, which are on top.
    fn object(&mut self, is_made_so: fn(Class) -> bool) -> Result<()> {
        let (arguments, class) = (self.pop()?, self.pop()?);
        let Value::Class(class) = self.values[class.idx()] else {
            return Err("calls what is no name".to_owned());
        };
        if !is_made_so(class) {
            return Err(format!("makes an object of {} in a way that is not read", class.path()));
        }
        if !matches!(self.values[arguments.idx()], Value::Tuple(_)) {
            return Err("calls with arguments that are no tuple".to_owned());
        }
        self.push(Value::Object { class, arguments, state: None })
    }

    /// Python numbers the memo without gaps; a gap would be memory for nothing.
    fn put(&mut self, idx: usize) -> Result<()> {
        let top = self.pop()?;
        self.stack.push(top);
        if idx != self.memo.len() {
            return Err(format!("fills place {idx} of its memo where {} is next", self.memo.len()));
        }
        if idx >= MAX_PUSHES {
            return Err(format!("has over {MAX_PUSHES} places in its memo"));
        }
        self.memo.push(top);
        Ok(())
    }

    fn get(&mut self, idx: usize) -> Result<()> {
        self.count_push()?;
        let id =
            *self.memo.get(idx).ok_or_else(|| format!("reads place {idx} of its memo, which is empty"))?;
        self.stack.push(id);
        Ok(())
    }
}

/// Two's complement, little-endian.
fn long(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > 8 {
        return Value::Long(bytes);
    }
    let fill = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xFF } else { 0 };
    let mut whole = [fill; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(whole))
}
