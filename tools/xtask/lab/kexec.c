// Starts another kernel from a running one, without the firmware and without a reset of any device.
//
//   kexec now KERNEL INITRD COMMAND_LINE    goes over to it
//   kexec crash KERNEL INITRD COMMAND_LINE  has it in readiness for when this one panics
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kexec.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **arguments) {
	if (count != 5) {
		fprintf(stderr, "usage: kexec now|crash KERNEL INITRD COMMAND_LINE\n");
		return 2;
	}
	int crash = strcmp(arguments[1], "crash") == 0;
	int kernel = open(arguments[2], O_RDONLY), initrd = open(arguments[3], O_RDONLY);
	const char *line = arguments[4];
	unsigned long flags = crash ? KEXEC_FILE_ON_CRASH : 0;
	if (kernel < 0 || initrd < 0 || syscall(SYS_kexec_file_load, kernel, initrd, strlen(line) + 1, line, flags) != 0) {
		perror("kexec");
		return 1;
	}
	if (crash)
		return 0;
	syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
	perror("kexec: reboot");
	return 1;
}
