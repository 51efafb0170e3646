import VMCore

extension Timeline: GuestView {
    public func registers() throws -> CoreRegisters { try engine.registers() }
}
