use super::literals;
use super::macros::{Arguments, Macro};
use super::rewrite::Context;
use super::tokens::{Kind, Token};

/// How deep expressions nest that are rewritten; the engine reads no deeper ones.
const MAX_DEPTH: usize = 150;

/// A tag that is being written: its tokens are consumed one by one, and go to `out` with what stands before them.
pub(super) struct Tag<'a> {
    source: &'a str,
    tokens: &'a [Token<'a>],
    next: usize,
    copied: usize,
    depth: usize,
    context: &'a Context,
    out: &'a mut String,
}

impl<'a> Tag<'a> {
    /// A tag whose code begins behind its opening, which is written already.
    pub(super) fn new(
        source: &'a str,
        tokens: &'a [Token<'a>],
        opening: usize,
        context: &'a Context,
        out: &'a mut String,
    ) -> Self {
        Self { source, tokens, next: 0, copied: opening, depth: 0, context, out }
    }

    /// Writes its code, and returns how much of the source that was; none where the code is not understood.
    pub(super) fn write(mut self) -> Option<usize> {
        if self.source.starts_with("{%") {
            self.statement()?
        } else {
            self.output()?
        }
        Some(self.copied)
    }

    fn peek(&self, ahead: usize) -> Option<&Token<'_>> {
        self.tokens.get(self.next + ahead)
    }

    fn is(&self, text: &str) -> bool {
        self.peek(0).is_some_and(|token| token.kind != Kind::Text && token.text == text)
    }

    /// Copies the next token.
    fn take(&mut self) -> Option<()> {
        let token = self.tokens.get(self.next)?;
        let end = token.start + token.text.len();
        self.out.push_str(&self.source[self.copied..end]);
        (self.next, self.copied) = (self.next + 1, end);
        Some(())
    }

    fn take_if(&mut self, text: &str) -> bool {
        self.is(text) && self.take().is_some()
    }

    fn expect(&mut self, text: &str) -> Option<()> {
        self.take_if(text).then_some(())
    }

    /// Consumes the next token, and writes another text in its place.
    fn replace(&mut self, text: &str) -> Option<()> {
        let token = self.tokens.get(self.next)?;
        self.out.push_str(&self.source[self.copied..token.start]);
        self.out.push_str(text);
        (self.next, self.copied) = (self.next + 1, token.start + token.text.len());
        Some(())
    }

    /// Puts a filter's call in the place of what is written from `start` on.
    fn call(&mut self, start: usize, filter: &str, value: &str, arguments: &str) {
        self.out.truncate(start);
        self.out.extend(["((", value, ")|", filter, "(", arguments, "))"]);
    }

    fn written(&self, start: usize) -> String {
        self.out[start..].to_owned()
    }

    /// A statement is expressions and what stands between them: `set a, b = 1, 2`.
    fn statement(&mut self) -> Option<()> {
        match self.peek(0)?.text {
            "generation" => return self.replace("with"),
            "endgeneration" => return self.replace("endwith"),
            // There are no other templates. The engine's reader of imports ends the process over some of them.
            word @ ("import" | "from" | "include" | "extends") => {
                return self.replace(&format!("{word}_is_not_offered"));
            }
            "for" => self.loop_head()?,
            "macro" => self.macro_head()?,
            _ => self.take()?,
        }
        while self.next < self.tokens.len() {
            let (next, length, copied) = (self.next, self.out.len(), self.copied);
            if self.expression().is_none() {
                self.out.truncate(length);
                (self.next, self.copied, self.depth) = (next, copied, 0);
                self.take()?;
            }
        }
        Some(())
    }

    /// What is written out: a value, or several as a tuple, which the engine wants in parentheses.
    fn output(&mut self) -> Option<()> {
        let start = self.out.len();
        self.expression()?;
        if self.is(",") {
            while self.take_if(",") && self.next < self.tokens.len() {
                self.expression()?;
            }
            let items = self.written(start);
            self.out.truncate(start);
            self.out.extend(["(", &items, ")"]);
        }
        (self.next == self.tokens.len()).then_some(())
    }

    /// `for targets in items`: None has no items.
    fn loop_head(&mut self) -> Option<()> {
        self.take()?;
        while !self.is("in") {
            self.take()?;
        }
        self.take()?;
        let start = self.out.len();
        loop {
            self.any_of()?;
            if !self.take_if(",") {
                break;
            }
        }
        let items = self.written(start);
        self.call(start, "__iterated", &items, "");
        Some(())
    }

    /// `macro name(parameters)`.
    fn macro_head(&mut self) -> Option<()> {
        self.take()?;
        let found = self.called()?;
        self.take()?;
        self.arguments()?;
        if let Some(found) = found {
            self.out.pop();
            self.out.extend([&found.hidden_parameters(), ")"]);
        }
        Some(())
    }

    /// The macro that takes further arguments and whose name comes next; the outer none where no name does.
    fn called(&self) -> Option<Option<&'a Macro>> {
        let name = self.peek(0).filter(|token| token.kind == Kind::Name)?;
        Some(self.context.macros.get(name.text))
    }

    /// `a if b else c`.
    fn expression(&mut self) -> Option<()> {
        if self.depth == MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        self.any_of()?;
        while self.take_if("if") {
            self.any_of()?;
            if self.take_if("else") {
                self.expression()?;
            }
        }
        self.depth -= 1;
        Some(())
    }

    /// `a or b`, `a and b`, `not a`.
    fn any_of(&mut self) -> Option<()> {
        loop {
            while self.take_if("not") {}
            self.comparison()?;
            if !self.take_if("or") && !self.take_if("and") {
                return Some(());
            }
        }
    }

    fn comparison(&mut self) -> Option<()> {
        let start = self.out.len();
        self.sum()?;
        let value_end = self.out.len();
        let (mut filter, mut num_operators, mut operand) = (None, 0, value_end);
        loop {
            let is_negated = self.is("not") && self.peek(1).is_some_and(|token| token.text == "in");
            filter = match self.peek(0).filter(|token| token.kind != Kind::Text).map(|token| token.text) {
                Some("<") => Some("__lt"),
                Some("<=") => Some("__le"),
                Some(">") => Some("__gt"),
                Some(">=") => Some("__ge"),
                Some("in") => Some("__in"),
                Some("not") if is_negated => Some("__not_in"),
                Some("==" | "!=") => None,
                // A chain of comparisons stays as it is: each operand of it is to be computed once.
                _ if num_operators == 1 => break,
                _ => return Some(()),
            };
            if is_negated {
                self.take()?;
            }
            self.take()?;
            num_operators += 1;
            operand = self.out.len();
            self.sum()?;
        }
        if let Some(filter) = filter {
            let (value, argument) = (self.out[start..value_end].to_owned(), self.written(operand));
            self.call(start, filter, &value, &argument);
        }
        Some(())
    }

    fn sum(&mut self) -> Option<()> {
        let start = self.out.len();
        self.concatenation()?;
        loop {
            if self.context.marks_texts && self.is("+") {
                self.chain(start, "+", "__add", Self::concatenation)?;
            } else if self.take_if("+") || self.take_if("-") {
                self.concatenation()?;
            } else {
                return Some(());
            }
        }
    }

    /// `a ~ b ~ c`.
    fn concatenation(&mut self) -> Option<()> {
        let start = self.out.len();
        self.product()?;
        if self.is("~") { self.chain(start, "~", "__concat", Self::product) } else { Some(()) }
    }

    /// Operands behind a first one, all between the same operator, as the arguments of one filter.
    fn chain(
        &mut self,
        start: usize,
        operator: &str,
        filter: &str,
        operand: fn(&mut Self) -> Option<()>,
    ) -> Option<()> {
        let value = self.written(start);
        let others = self.out.len();
        while self.is(operator) {
            self.replace(",")?;
            operand(self)?;
        }
        let others = self.written(others);
        self.call(start, filter, &value, others.trim_start_matches([' ', '\n', '\t', ',']));
        Some(())
    }

    fn product(&mut self) -> Option<()> {
        let start = self.out.len();
        self.power()?;
        loop {
            if self.is("%") {
                let value = self.written(start);
                self.take()?;
                let operand = self.out.len();
                self.power()?;
                let operand = self.written(operand);
                self.call(start, "__percent", &value, &operand);
            } else if self.take_if("*") || self.take_if("/") || self.take_if("//") {
                self.power()?;
            } else {
                return Some(());
            }
        }
    }

    fn power(&mut self) -> Option<()> {
        self.unary()?;
        while self.take_if("**") {
            self.unary()?;
        }
        Some(())
    }

    /// A value with its sign, its filters and its tests. The engine does not know the sign `+`.
    fn unary(&mut self) -> Option<()> {
        while self.is("-") || self.is("+") {
            if self.is("+") { self.replace(" ")? } else { self.take()? }
        }
        self.operand()?;
        loop {
            if self.take_if("|") {
                self.name()?;
            } else if self.take_if("is") {
                self.take_if("not");
                self.name()?;
                let ends = ["and", "or", "else", "is", "if", "not", "in"];
                let is_value = self.peek(0).is_some_and(|token| match token.kind {
                    Kind::Name => !ends.contains(&token.text),
                    Kind::Text | Kind::Number => true,
                    Kind::Operator => matches!(token.text, "[" | "{"),
                });
                if is_value {
                    self.operand()?;
                }
            } else {
                return Some(());
            }
            if self.is("(") {
                self.arguments()?;
            }
        }
    }

    /// A filter's or a test's name.
    fn name(&mut self) -> Option<()> {
        loop {
            self.peek(0).filter(|token| token.kind == Kind::Name)?;
            self.take()?;
            if !self.take_if(".") {
                return Some(());
            }
        }
    }

    /// A value with its attributes, items, slices and calls.
    fn operand(&mut self) -> Option<()> {
        let start = self.out.len();
        match self.peek(0)? {
            Token { kind: Kind::Text, .. } => {
                while let Some(token) = self.peek(0).filter(|token| token.kind == Kind::Text) {
                    match literals::rewritten(token.text) {
                        Some(literal) => self.replace(&literal)?,
                        None => self.take()?,
                    }
                }
            }
            Token { kind: Kind::Name, .. } => {
                let called = self.called().flatten();
                self.take()?;
                if let Some(called) = called.filter(|_| self.is("(")) {
                    self.passed(called)?;
                }
            }
            Token { kind: Kind::Number, .. } => self.take()?,
            Token { text: "(", .. } => self.list(")")?,
            Token { text: "[", .. } => self.list("]")?,
            Token { text: "{", .. } => self.list("}")?,
            _ => return None,
        }
        loop {
            if self.take_if(".") {
                self.peek(0).filter(|token| matches!(token.kind, Kind::Name | Kind::Number))?;
                self.take()?;
            } else if self.is("(") {
                self.arguments()?;
            } else if self.is("[") {
                self.subscript(start)?;
            } else {
                return Some(());
            }
        }
    }

    /// Items up to a closing bracket, of an object with their keys.
    fn list(&mut self, close: &str) -> Option<()> {
        self.take()?;
        while !self.take_if(close) {
            self.expression()?;
            if close == "}" {
                self.expect(":")?;
                self.expression()?;
            }
            if !self.take_if(",") && !self.is(close) {
                return None;
            }
        }
        Some(())
    }

    fn arguments(&mut self) -> Option<()> {
        self.expect("(")?;
        while !self.take_if(")") {
            if !self.take_if("*") && !self.take_if("**") {
                let is_named = self.peek(1).is_some_and(|token| token.text == "=");
                if is_named {
                    self.take()?;
                    self.take()?;
                }
            }
            self.expression()?;
            if !self.take_if(",") && !self.is(")") {
                return None;
            }
        }
        Some(())
    }

    /// The arguments of a macro that takes further ones.
    fn passed(&mut self, called: &Macro) -> Option<()> {
        self.expect("(")?;
        let start = self.out.len();
        let mut arguments = Arguments::default();
        while !self.is(")") {
            let is_named = self.peek(1).is_some_and(|token| token.text == "=");
            let name = self.peek(0).filter(|_| is_named).map(|token| token.text.to_owned());
            if name.is_some() {
                self.take()?;
                self.take()?;
            }
            let value_start = self.out.len();
            self.expression()?;
            let value = self.written(value_start);
            match name {
                Some(name) => arguments.named.push((name, value)),
                None => arguments.positional.push(value),
            }
            if !self.take_if(",") && !self.is(")") {
                return None;
            }
        }
        self.out.truncate(start);
        self.out.push_str(&called.pass(arguments));
        self.take()
    }

    /// `value[item]` or `value[start:stop:step]`, where the value is written from `start` on.
    fn subscript(&mut self, start: usize) -> Option<()> {
        let value = self.written(start);
        self.take()?;
        let mut places = Vec::new();
        let mut is_slice = false;
        loop {
            let place = self.out.len();
            if !self.is(":") && !self.is("]") {
                self.expression()?;
            }
            let place = self.written(place);
            places.push(if place.trim().is_empty() { "none".to_owned() } else { place });
            if !self.take_if(":") {
                break;
            }
            is_slice = true;
        }
        self.expect("]")?;
        if is_slice {
            places.resize(3, "none".to_owned());
            self.call(start, "__slice", &value, &places.join(","));
        }
        Some(())
    }
}
