use super::class::Class;

/// The most keys of a dictionary in which one is looked up by name. A pickled tokenizer has 25.
const MAX_FIELDS: usize = 256;

/// A value's place in its pickle's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct ValueId(pub(super) u32);

impl ValueId {
    pub(in super::super) fn idx(self) -> usize {
        self.0 as usize
    }
}

/// A Python value; text and bytes lie in the input.
#[derive(Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits, two's complement, little-endian.
    Long(&'a [u8]),
    Text(&'a str),
    Bytes(&'a [u8]),
    Tuple(Vec<ValueId>),
    List(Vec<ValueId>),
    /// In order of insertion.
    Dict(Vec<[ValueId; 2]>),
    Class(Class),
    /// What would be made of a class or by a function, had anything been executed.
    Object {
        class: Class,
        arguments: ValueId,
        state: Option<ValueId>,
    },
    /// What is kept outside the pickle under this id.
    Persistent(ValueId),
}

/// A pickle that was read.
pub(in super::super) struct Pickle<'a> {
    pub(super) values: Vec<Value<'a>>,
    pub(super) root: ValueId,
}

impl<'a> Pickle<'a> {
    pub(in super::super) fn root(&self) -> View<'_, 'a> {
        self.view(self.root)
    }

    pub(in super::super) fn num_values(&self) -> usize {
        self.values.len()
    }

    fn view(&self, id: ValueId) -> View<'_, 'a> {
        View { pickle: self, id }
    }
}

/// A value, to be asked for what it is expected to be. What it is instead becomes an error's text.
#[derive(Clone, Copy)]
pub(in super::super) struct View<'p, 'a> {
    pickle: &'p Pickle<'a>,
    id: ValueId,
}

type Result<T> = std::result::Result<T, String>;

impl<'p, 'a> View<'p, 'a> {
    pub(in super::super) fn id(self) -> ValueId {
        self.id
    }

    fn value(self) -> &'p Value<'a> {
        &self.pickle.values[self.id.idx()]
    }

    pub(in super::super) fn text(self) -> Result<&'a str> {
        match self.value() {
            Value::Text(text) => Ok(text),
            _ => self.is_no("a text"),
        }
    }

    pub(in super::super) fn bytes(self) -> Result<&'a [u8]> {
        match self.value() {
            Value::Bytes(bytes) => Ok(bytes),
            _ => self.is_no("bytes"),
        }
    }

    /// An integer that fits.
    pub(in super::super) fn int<T: TryFrom<i64>>(self) -> Result<T> {
        match self.value() {
            Value::Int(int) => T::try_from(*int).map_err(|_| format!("{int} is out of range")),
            _ => self.is_no("an integer"),
        }
    }

    /// The bytes of an integer over 64 bits.
    pub(in super::super) fn long(self) -> Result<&'a [u8]> {
        match self.value() {
            Value::Long(bytes) => Ok(bytes),
            _ => self.is_no("a long integer"),
        }
    }

    pub(in super::super) fn tuple(self) -> Result<impl ExactSizeIterator<Item = Self> + Clone> {
        match self.value() {
            Value::Tuple(items) => Ok(self.views(items)),
            _ => self.is_no("a tuple"),
        }
    }

    /// A tuple of so many.
    pub(in super::super) fn tuple_of<const N: usize>(self) -> Result<[Self; N]> {
        let items: Vec<_> = self.tuple()?.take(N + 1).collect();
        items.try_into().map_err(|_| format!("expected a tuple of {N}"))
    }

    pub(in super::super) fn list(self) -> Result<impl ExactSizeIterator<Item = Self> + Clone> {
        match self.value() {
            Value::List(items) => Ok(self.views(items)),
            _ => self.is_no("a list"),
        }
    }

    pub(in super::super) fn dict(self) -> Result<impl ExactSizeIterator<Item = (Self, Self)>> {
        match self.value() {
            Value::Dict(items) => {
                Ok(items.iter().map(move |[key, value]| (self.pickle.view(*key), self.pickle.view(*value))))
            }
            _ => self.is_no("a dictionary"),
        }
    }

    /// What stands at a key of a small dictionary, as an object's fields are; one pickle may ask a million times for what
    /// stands in one large one. Twice is never: Python would take the last, a reader by eye the first.
    pub(in super::super) fn at(self, key: &str) -> Result<Self> {
        let items = self.dict()?;
        if items.len() > MAX_FIELDS {
            return Err(format!("has {} keys where at most {MAX_FIELDS} are expected", items.len()));
        }
        let mut found = items.filter(|item| item.0.text().is_ok_and(|text| text == key));
        match (found.next(), found.next()) {
            (Some((_, value)), None) => Ok(value),
            (None, _) => Err(format!("has no `{key}`")),
            (Some(_), Some(_)) => Err(format!("has `{key}` twice")),
        }
    }

    /// The arguments of an object of this class.
    pub(in super::super) fn arguments(self, of: Class) -> Result<Self> {
        match self.value() {
            Value::Object { class, arguments, .. } if *class == of => Ok(self.pickle.view(*arguments)),
            _ => self.is_no(&of.path()),
        }
    }

    /// The state of an object of such a class.
    pub(in super::super) fn state(self, is_expected: impl Fn(Class) -> bool, what: &str) -> Result<Self> {
        match self.value() {
            Value::Object { class, state: Some(state), .. } if is_expected(*class) => {
                Ok(self.pickle.view(*state))
            }
            _ => self.is_no(what),
        }
    }

    pub(in super::super) fn is_class(self, class: Class) -> bool {
        matches!(self.value(), Value::Class(found) if *found == class)
    }

    /// The id of what is kept outside.
    pub(in super::super) fn persistent(self) -> Result<Self> {
        match self.value() {
            Value::Persistent(id) => Ok(self.pickle.view(*id)),
            _ => self.is_no("a persistent id"),
        }
    }

    pub(in super::super) fn truth(self) -> Result<bool> {
        match self.value() {
            Value::Bool(truth) => Ok(*truth),
            _ => self.is_no("a truth value"),
        }
    }

    pub(in super::super) fn is_none(self) -> bool {
        matches!(self.value(), Value::None)
    }

    pub(in super::super) fn is_tuple(self) -> bool {
        matches!(self.value(), Value::Tuple(_))
    }

    fn views(self, items: &'p [ValueId]) -> impl ExactSizeIterator<Item = Self> + Clone {
        items.iter().map(move |id| self.pickle.view(*id))
    }

    fn is_no<T>(self, expected: &str) -> Result<T> {
        let found = match self.value() {
            Value::None => "None",
            Value::Bool(_) => "a truth value",
            Value::Int(_) | Value::Long(_) => "an integer",
            Value::Text(_) => "a text",
            Value::Bytes(_) => "bytes",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dictionary",
            Value::Class(class) => {
                return Err(format!("expected {expected}, found the name {}", class.path()));
            }
            Value::Object { class, .. } => {
                return Err(format!("expected {expected}, found an object of {}", class.path()));
            }
            Value::Persistent(_) => "a persistent id",
        };
        Err(format!("expected {expected}, found {found}"))
    }
}
