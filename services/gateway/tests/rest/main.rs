//! The REST API against a scripted text service.

#[cfg(test)]
mod any_request;
#[cfg(test)]
mod bad_requests;
#[cfg(test)]
mod door;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod operations;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod tenants;
#[cfg(test)]
mod translation;
#[cfg(test)]
mod whole_answers;
