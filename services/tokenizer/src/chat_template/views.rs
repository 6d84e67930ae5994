use std::fmt;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectRepr, Tuple, ValueKind};

use super::repr;

/// What Python's `keys`, `values` and `items` of an object give: it can be gone through, has a length, and no places.
#[derive(Debug)]
pub(super) struct View {
    name: &'static str,
    items: Vec<Value>,
}

impl View {
    /// A view of an object; none where the method gives no such, or the value is no object.
    pub(super) fn of(map: &Value, method: &str) -> Option<Value> {
        if map.kind() != ValueKind::Map {
            return None;
        }
        let item = |key: &Value| map.get_item(key).unwrap_or_default();
        let keys = || map.try_iter().into_iter().flatten();
        let (name, items) = match method {
            "keys" => ("dict_keys", keys().collect()),
            "values" => ("dict_values", keys().map(|key| item(&key)).collect()),
            "items" => (
                "dict_items",
                keys().map(|key| Value::from(Tuple::from([key.clone(), item(&key)]))).collect(),
            ),
            _ => return None,
        };
        Some(Value::from_object(Self { name, items }))
    }

    /// As Python writes it.
    pub(super) fn push_repr(&self, out: &mut String) {
        out.extend([self.name, "("]);
        repr::push_repr(out, &Value::from(self.items.clone()));
        out.push(')');
    }
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        self.push_repr(&mut out);
        f.write_str(&out)
    }
}
