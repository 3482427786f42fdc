//! Words and signs to a condition, by recursive descent.

use super::tokens::{Token, tokens};
use super::{Condition, Operand, failed};
use crate::{Error, Result};

/// Conditions within one another: each takes its part of the stack.
pub(super) const DEEPEST: usize = 200;

/// A condition and the columns that it speaks of.
pub(super) fn parse(text: &str) -> Result<(Condition, Vec<String>)> {
    let mut parser = Parser { text, tokens: tokens(text)?, at: 0, depth: 0, columns: Vec::new() };
    let condition = parser.either()?;
    if parser.at < parser.tokens.len() {
        return Err(parser.unexpected("`and`, `or` or the end"));
    }
    Ok((condition, parser.columns))
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
    columns: Vec<String>,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn unexpected(&self, wanted: &str) -> Error {
        let place = self.tokens.get(self.at).map_or(self.text.len(), |(place, _)| *place);
        failed(self.text, place, &format!("{wanted} is needed"))
    }

    /// Steps over a token if it is the next one.
    fn eat(&mut self, token: &Token) -> bool {
        let is_next = self.peek() == Some(token);
        self.at += usize::from(is_next);
        is_next
    }

    /// Steps over a word of the language if it is the next one.
    fn eat_word(&mut self, word: &str) -> bool {
        let is_next = matches!(self.peek(), Some(Token::Word(found, false)) if found.eq_ignore_ascii_case(word));
        self.at += usize::from(is_next);
        is_next
    }

    fn either(&mut self) -> Result<Condition> {
        let mut parts = vec![self.both()?];
        while self.eat_word("or") {
            parts.push(self.both()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Condition::Or(parts) })
    }

    fn both(&mut self) -> Result<Condition> {
        let mut parts = vec![self.one()?];
        while self.eat_word("and") {
            parts.push(self.one()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Condition::And(parts) })
    }

    /// One level further down.
    fn within(&mut self, inner: fn(&mut Self) -> Result<Condition>) -> Result<Condition> {
        if self.depth == DEEPEST {
            return Err(self.unexpected(&format!("a filter of at most {DEEPEST} levels")));
        }
        self.depth += 1;
        let condition = inner(self)?;
        self.depth -= 1;
        Ok(condition)
    }

    fn one(&mut self) -> Result<Condition> {
        if self.eat_word("not") {
            return Ok(Condition::Not(Box::new(self.within(Self::one)?)));
        }
        if self.eat(&Token::Open) {
            let inside = self.within(Self::either)?;
            return if self.eat(&Token::Close) { Ok(inside) } else { Err(self.unexpected("a closing parenthesis")) };
        }
        let left = self.operand()?;
        if let Some(&Token::Compare(comparison)) = self.peek() {
            self.at += 1;
            return Ok(Condition::Compare(comparison, left, self.operand()?));
        }
        if self.eat_word("is") {
            let negated = self.eat_word("not");
            if !self.eat_word("null") {
                return Err(self.unexpected("`null`"));
            }
            return Ok(negate(negated, Condition::IsNull(left)));
        }
        let negated = self.eat_word("not");
        if self.eat_word("in") {
            return Ok(negate(negated, Condition::In(left, self.operands()?)));
        }
        if negated {
            return Err(self.unexpected("`in`"));
        }
        Ok(Condition::Is(left))
    }

    fn operands(&mut self) -> Result<Vec<Operand>> {
        if !self.eat(&Token::Open) {
            return Err(self.unexpected("an opening parenthesis"));
        }
        let mut operands = vec![self.operand()?];
        while self.eat(&Token::Comma) {
            operands.push(self.operand()?);
        }
        if self.eat(&Token::Close) { Ok(operands) } else { Err(self.unexpected("a comma or a closing parenthesis")) }
    }

    fn operand(&mut self) -> Result<Operand> {
        match self.peek().cloned() {
            Some(Token::Literal(value)) => {
                self.at += 1;
                Ok(Operand::Literal(value))
            }
            Some(Token::Word(name, quoted)) if quoted || !is_reserved(&name) => {
                self.at += 1;
                let known = self.columns.iter().position(|column| *column == name);
                let index = known.unwrap_or_else(|| {
                    self.columns.push(name);
                    self.columns.len() - 1
                });
                Ok(Operand::Column(index))
            }
            _ => Err(self.unexpected("a column, a number or a text in quotes")),
        }
    }
}

fn negate(really: bool, condition: Condition) -> Condition {
    if really { Condition::Not(Box::new(condition)) } else { condition }
}

fn is_reserved(word: &str) -> bool {
    ["and", "or", "not", "in", "is", "null"].iter().any(|reserved| word.eq_ignore_ascii_case(reserved))
}
