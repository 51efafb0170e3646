/// What a guest asked the platform to do with the whole machine.
public enum PowerRequest: Codable, Hashable, Sendable {
    /// Restart from the reset vector.
    case reset
    /// Switch off (ACPI state S5).
    case powerOff
    /// End the run with this value, as written to the debug exit port.
    case debugExit(UInt32)
}
