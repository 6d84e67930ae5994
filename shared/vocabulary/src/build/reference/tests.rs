mod building;
mod golden;
mod plain;
